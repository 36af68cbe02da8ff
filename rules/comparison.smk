"""Models against each other: metrics of all models -> results/comparison/{intervals,differences,correlations}.parquet."""


rule comparison:
    """Estimate paired differences of models on the same texts, and correlations over models."""
    input:
        values=expand("results/metrics/{model}.parquet", model=models),
        sequences=expand("results/metrics/{model}.sequences.parquet", model=models),
        tokens=expand("results/metrics/{model}.tokens.parquet", model=models),
    output:
        intervals="results/comparison/intervals.parquet",
        differences="results/comparison/differences.parquet",
        correlations="results/comparison/correlations.parquet",
    log:
        "logs/comparison.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        rows=rows,
        criteria=config["outliers"],
        resamples=config["bootstrap"]["resamples"],
        confidence=config["bootstrap"]["confidence"],
        seed=config["seed"],
        version=versions.COMPARISON,
    script:
        "../scripts/comparison.py"
