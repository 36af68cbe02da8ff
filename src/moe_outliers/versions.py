"""The version of each step's results: raise one, and the files of that step are built again.

Rules pass these to their scripts as a parameter, so that a changed comment costs no GPU time and a
changed formula is never missed. This module imports nothing: every start of Snakemake reads it.
"""

__version__ = "0.1.0"
"""The version of this distribution: pyproject.toml takes it from here; it rebuilds nothing."""

TEXTS = 1
TOKENIZE = 1
EXTRACT = 1
VERIFY = 1
METRICS = 2
BOOTSTRAP = 2
COMPARISON = 2
VALIDATE = 3
PLOT = 4
TABLES = 3
REPORT = 4

STATISTICS_FORMAT = 1
"""Format of the statistics file; readers refuse a newer one than they know."""
