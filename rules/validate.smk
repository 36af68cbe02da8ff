"""Simulations: data of known truth -> results/validate/*.parquet."""


rule validate:
    """Measure the coverage of the intervals, and false discovery and power of the classes."""
    output:
        coverage="results/validate/coverage.parquet",
        selection="results/validate/selection.parquet",
        classes="results/validate/classes.parquet",
        discoveries="results/validate/discoveries.parquet",
    log:
        "logs/validate.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        sizes=sorted({8, 16, 32, data["sequences"]}),
        sets=1000,  # simulated data sets a row; a tenth as many sweeps, one in 12 models
        criteria=config["outliers"],
        confidence=config["bootstrap"]["confidence"],
        seed=config["seed"],
        version=versions.VALIDATE,
    script:
        "../scripts/validate.py"
