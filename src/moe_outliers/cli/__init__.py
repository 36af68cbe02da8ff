"""The command moe-outliers."""
