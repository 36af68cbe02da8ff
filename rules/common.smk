"""Shared by all rules: the settings, the selected models, the batches."""

from functools import partial

from moe_outliers import versions
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.storage import receipts
from moe_outliers.workflow import healing, paths, settings, snakemake_internals, sweep

snakemake_internals.check()
here = partial(paths.seen_from_here, workflow.basedir)

table = Path(here(config["table"]))
with snakemake_internals.errors():
    rows = settings.models(config, table, Path(workflow.basedir, "config/schemas"))
models = {slug: sweep.described(row, config) for slug, row in rows.items()}
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
    """Return a model's tokens file; as never too new, if receipts prove what times cannot."""
    tokens = paths.TOKENS.format(model=wildcards.model)
    known = partial(snakemake_internals.has_record, workflow)
    own = pairs_of(wildcards.model)
    proven = healing.receipts_prove_tokens(own, Path(tokens), damaged, known)
    return ancient(tokens) if proven else tokens


def figure(name):
    """Return a function that gives what the catalogue says of the job's figure."""
    return lambda wildcards: getattr(FIGURES[wildcards.figure], name)


def tables_of(wildcards):
    """Return the tables that the job's figure is drawn from."""
    return [paths.TABLE.format(table=table) for table in FIGURES[wildcards.figure].tables]
