"""Shared by all rules: the settings, the selected models, the batches."""

import os

from snakemake.exceptions import WorkflowError

from moe_outliers import configuration, plan, receipts, versions


def here(path):
    """Return a path of the workflow's folder as seen from the working directory."""
    return path if os.path.isabs(path) else os.path.relpath(Path(workflow.basedir, path))


try:
    table = Path(here(config["table"]))
    rows = configuration.models(config, table, Path(workflow.basedir, "config/schemas"))
except ValueError as error:
    raise WorkflowError(str(error)) from None
models = {slug: row | plan.needs(row) for slug, row in rows.items()}
data = config["data"]
batches = receipts.batches(data["sequences"], data["batch_size"])
pairs = ["results/extract/{model}/{batch}.nc", "results/extract/{model}/{batch}.json"]
damaged = {}  # reason by path; heal.smk fills it in


wildcard_constraints:
    model="|".join(map(re.escape, models)),
    batch=r"\d+",


def column(name):
    """Return a function that gives a value of the job's model: of its row, or what it needs."""
    return lambda wildcards: models[wildcards.model][name]


def shape(wildcards):
    """Return what the table says of the shape of the job's model, for `verify` to check."""
    return {name: models[wildcards.model][name] for name in ("layers", "width", "experts", "top_k")}


def identity(wildcards):
    """Return what the receipts of the job's model must say."""
    return receipts.identity(models[wildcards.model], config)


def pairs_of(model):
    """Return a model's batches: statistics file, receipt, and what the receipt must say."""
    return receipts.pairs(model, receipts.identity(models[model], config), *pairs)


def checkpoint_file(name):
    """Return a function that gives a local checkpoint's files as input, and nothing for the hub's."""

    def files_of(wildcards):
        row = models[wildcards.model]
        return (
            sorted(map(str, Path(here(row["repo"])).glob(name)))
            if row["revision"] == "local"
            else []
        )

    return files_of


def tokens_of(wildcards):
    """Return a model's tokens file, as never too new if it is only built again for a whole model.

    A damaged or deleted tokens file is built again with the same bytes; that must not send a model
    whose batches are all valid to a GPU.
    """
    tokens = f"results/tokens/{wildcards.model}.parquet"
    restored = any(
        not Path(p).exists() or Path(p) in damaged for p in ("results/texts.parquet", tokens)
    )
    whole = all(
        s.exists() and r.exists() and s not in damaged for s, r, _ in pairs_of(wildcards.model)
    )
    return ancient(tokens) if restored and whole else tokens
