"""One run of Snakemake: its executor, and each job brought to its end."""
