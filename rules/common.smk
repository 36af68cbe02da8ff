"""Shared by all rules: the settings, the selected models, the batches."""

import os

from snakemake.exceptions import WorkflowError

from moe_outliers import configuration, plan, receipts, versions


def here(path):
    """Return a path of the workflow's folder as seen from the working directory."""
    return os.path.relpath(Path(workflow.basedir, path))


schemas = Path(workflow.basedir, "config/schemas")
try:
    configuration.check(config, schemas)
    table_path = Path(here(config["table"]))
    table = configuration.read_table(table_path, schemas)
    models = configuration.select(config["models"], table, table_path)
except ValueError as error:
    raise WorkflowError(str(error)) from None
data = config["data"]
batches = receipts.batches(data["sequences"], data["batch_size"])
pairs = ["results/extract/{model}/{batch}.nc", "results/extract/{model}/{batch}.json"]


wildcard_constraints:
    model="|".join(map(re.escape, models)),
    batch=r"\d+",


def checkpoint_file(name):
    """Return a function that gives a local checkpoint's file as input, and nothing for a model of the hub."""

    def files_of(wildcards):
        row = models[wildcards.model]
        return (
            sorted(map(str, Path(here(row["repo"])).glob(name)))
            if row["revision"] == "local"
            else []
        )

    return files_of


def identity(wildcards):
    """Return what the receipts of a model's batches must say."""
    row = models[wildcards.model]
    return {
        "repo": row["repo"],
        "revision": row["revision"],
        "settings": receipts.settings_digest(row, config),
        "sequences": data["sequences"],
        "batch_size": data["batch_size"],
    }


def need(resource):
    """Return a function that gives what the job's model needs of a resource."""
    return lambda wildcards: plan.needs(models[wildcards.model])[resource]


def column(name):
    """Return a function that gives the job's model's value in a column of the table of models."""
    return lambda wildcards: models[wildcards.model][name]


def expected_shape(wildcards):
    """Return what the table says of the model's shape, for `verify` to check."""
    return {name: models[wildcards.model][name] for name in ("layers", "width", "experts", "top_k")}
