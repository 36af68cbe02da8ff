"""Statistics of the activations: results/tokens/{model}.parquet -> results/extract/{model}/{batch}.{nc,json}."""

from importlib.util import find_spec

if find_spec("snakemake_executor_plugin_runpod"):  # pods, and who only plots, do without it
    from snakemake_executor_plugin_runpod import costs

    costs.show(workflow)  # at the end of a dry run with --profile runpod


rule extract:
    """Run one model over its sequences; compute only the batches that are missing or invalid."""
    input:
        tokens=tokens_of,
        config=checkpoint_file("config.json"),
        weights=checkpoint_file("*.safetensors*"),
    output:
        statistics=update(expand(pairs[0], batch=batches, allow_missing=True)),
        receipts=update(expand(pairs[1], batch=batches, allow_missing=True)),
    log:
        "logs/extract/{model}.log",
    benchmark:
        "logs/extract/{model}.benchmark.tsv"
    conda:
        "../envs/extract.yaml"
    # All of them with a GPU: on one machine, one model after the other.
    threads: 1 if config["extract"]["device"] == "cpu" else workflow.cores
    resources:
        engine="streamed",
        device=config["extract"]["device"],
        gpus=column("gpus"),
        vram_gb=column("vram_gb"),
        min_memory_gb=column("min_memory_gb"),
        disk_gb=column("disk_gb"),
        download_gb=column("download_gb"),
        hub=column("hub"),
    params:
        identity=column("identity"),
        dtype=column("dtype"),
        micro_batch=config["extract"]["micro_batch"],
        alphas=config["extract"]["alphas"],
        version=versions.EXTRACT,
    script:
        "../scripts/extract.py"
