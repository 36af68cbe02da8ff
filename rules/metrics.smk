"""Metrics: statistics, verdict and tokens of a model -> results/metrics/{model}.parquet and its further tables."""


rule metrics:
    """Compute every metric of one model; fail with the verdict if its statistics are not valid."""
    input:
        statistics=expand(pairs[0], batch=batches, allow_missing=True),
        verdict="results/verify/{model}.json",
        tokens="results/tokens/{model}.parquet",
    output:
        values="results/metrics/{model}.parquet",
        sequences="results/metrics/{model}.sequences.parquet",
        features="results/metrics/{model}.features.parquet",
        feature_tokens="results/metrics/{model}.feature_tokens.parquet",
        profile="results/metrics/{model}.profile.parquet",
        blocks="results/metrics/{model}.blocks.parquet",
        experts="results/metrics/{model}.experts.parquet",
        sensitivity="results/metrics/{model}.sensitivity.parquet",
        stability="results/metrics/{model}.stability.parquet",
        cross_batch="results/metrics/{model}.cross_batch.parquet",
        provenance="results/metrics/{model}.provenance.parquet",
        tokens="results/metrics/{model}.tokens.parquet",
    log:
        "logs/metrics/{model}.log",
    benchmark:
        "logs/metrics/{model}.benchmark.tsv"
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        criteria=config["outliers"],
        seed=config["seed"],
        version=versions.METRICS,
    script:
        "../scripts/metrics.py"
