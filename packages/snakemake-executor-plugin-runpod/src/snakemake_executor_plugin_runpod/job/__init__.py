"""A job of Snakemake's as a task: what travels to a pod, and whether it would work there."""
