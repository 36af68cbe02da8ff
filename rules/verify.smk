"""Verdicts: results/extract/{model}/{batch}.{nc,json} -> results/verify/{model}.json."""


rule verify:
    """Check every statistics file of one model, and say valid or not, and why."""
    input:
        statistics=expand(pairs[0], batch=batches, allow_missing=True),
        receipts=expand(pairs[1], batch=batches, allow_missing=True),
        tokens="results/tokens/{model}.parquet",
    output:
        verdict="results/verify/{model}.json",
    log:
        "logs/verify/{model}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        identity=column("identity"),
        row=column("shape"),
        alphas=config["extract"]["alphas"],
        tokens=data["tokens"],
        version=versions.VERIFY,
    script:
        "../scripts/verify.py"
