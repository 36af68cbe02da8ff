"""RunPod's API, seen through one small protocol, whichever transport is behind it."""
