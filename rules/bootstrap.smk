"""Confidence intervals: results/metrics/{model}.parquet -> results/bootstrap/{model}.parquet."""


rule bootstrap:
    """Resample the sequences of one model and keep the interval of each metric."""
    input:
        values="results/metrics/{model}.parquet",
        sequences="results/metrics/{model}.sequences.parquet",
    output:
        intervals="results/bootstrap/{model}.parquet",
    log:
        "logs/bootstrap/{model}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        criteria=config["outliers"],
        resamples=config["bootstrap"]["resamples"],
        confidence=config["bootstrap"]["confidence"],
        seed=config["seed"],
        version=versions.BOOTSTRAP,
    script:
        "../scripts/bootstrap.py"
