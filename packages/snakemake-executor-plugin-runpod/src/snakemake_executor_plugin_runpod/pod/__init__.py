"""The two programs that run on a pod: standard library only, and nothing of this package."""
