"""Token ids: results/texts.parquet -> results/tokens/{model}.parquet."""


rule tokenize:
    """Turn the texts into the token ids of one model."""
    input:
        texts="results/texts.parquet",
        tokenizer=checkpoint_file("tokenizer.json"),
    output:
        tokens="results/tokens/{model}.parquet",
    log:
        "logs/tokenize/{model}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        repo=column("repo"),
        revision=column("revision"),
        tokens=data["tokens"],
        bos=data["bos"],
        version=versions.TOKENIZE,
    script:
        "../scripts/tokenize.py"
