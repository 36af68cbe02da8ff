"""Shared by all rules: the settings, the selected models, the batches."""

import os

from snakemake.exceptions import WorkflowError

from moe_outliers import versions
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.storage import receipts
from moe_outliers.workflow import paths, resources, settings


def here(path):
    """Return a path of the workflow's folder as seen from the working directory."""
    return path if os.path.isabs(path) else os.path.relpath(Path(workflow.basedir, path))


try:
    table = Path(here(config["table"]))
    rows = settings.models(config, table, Path(workflow.basedir, "config/schemas"))
except ValueError as error:
    raise WorkflowError(str(error)) from None
models = {
    slug: row
    | resources.needs(row)
    | {"identity": receipts.identity(row, config), "shape": settings.shape(row)}
    for slug, row in rows.items()
}
data = config["data"]
batches = receipts.batches(data["sequences"], data["batch_size"])
pairs = [paths.STATISTICS, paths.RECEIPT]
damaged = {}  # reason by path; heal.smk fills it in


wildcard_constraints:
    model="|".join(map(re.escape, models)),
    batch=r"\d+",
    figure="|".join(FIGURES),


def column(name):
    """Return a function that gives a value of the job's model: of its row, or what it needs."""
    return lambda wildcards: models[wildcards.model][name]


def pairs_of(model):
    """Return a model's batches: statistics file, receipt, and what the receipt must say."""
    return receipts.pairs(model, models[model]["identity"], *pairs)


def checkpoint_file(name):
    """Return a function that gives a local checkpoint's files as input, and nothing for the hub's."""
    return lambda wildcards: settings.local_files(models[wildcards.model], here, name)


def tokens_of(wildcards):
    """Return a model's tokens file; as never too new, if a whole model's is built again or unknown.

    It is built again with the same bytes, and where Snakemake has no record of the batches, their
    receipts say that it is the one they were made from: neither must send the model to a GPU again.
    """
    tokens, own = paths.TOKENS.format(model=wildcards.model), pairs_of(wildcards.model)
    restored = any(not Path(p).exists() or Path(p) in damaged for p in (paths.TEXTS, tokens))
    unknown = any(workflow.persistence._read_record(str(pair.statistics)) is None for pair in own)
    whole = all(s.exists() and r.exists() and s not in damaged for s, r, _ in own)
    return ancient(tokens) if whole and (restored or unknown) else tokens


def figure(name):
    """Return a function that gives what the catalogue says of the job's figure."""
    return lambda wildcards: getattr(FIGURES[wildcards.figure], name)


def tables_of(wildcards):
    """Return the tables that the job's figure is drawn from."""
    return [paths.TABLE.format(table=table) for table in FIGURES[wildcards.figure].tables]
