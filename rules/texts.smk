"""The texts of all models: a data set, a file or the bundled text -> results/texts.parquet."""


rule texts:
    """Choose the documents that every model reads."""
    input:
        source=[here(data["path"])] if data["source"] in ("jsonl", "text") else [],
    output:
        texts="results/texts.parquet",
    log:
        "logs/texts.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        source=data["source"],
        path=data["path"] if data["source"] != "bundled" else "",
        subset=data["subset"] if data["source"] == "huggingface" else "",
        revision=data["revision"] if data["source"] == "huggingface" else "",
        sequences=data["sequences"],
        tokens=data["tokens"],
        seed=config["seed"],
        version=versions.TEXTS,
    script:
        "../scripts/texts.py"
