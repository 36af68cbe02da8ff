"""Outlier features of Mixture-of-Experts language models: texts to figures."""

from snakemake.utils import min_version

min_version("9.27")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "rules/common.smk"
include: "rules/texts.smk"
include: "rules/tokenize.smk"
include: "rules/extract.smk"
include: "rules/verify.smk"
include: "rules/metrics.smk"
include: "rules/bootstrap.smk"
include: "rules/comparison.smk"
include: "rules/validate.smk"
include: "rules/tables.smk"
include: "rules/plot.smk"
include: "rules/report.smk"
include: "rules/heal.smk"
include: "rules/facts.smk"


# All by name: Snakemake does not build what is missing if that which was made from it looks fresh.
products = snakemake_internals.outputs(workflow)


rule all:
    default_target: True
    input:
        expand(products, model=models, batch=batches, figure=FIGURES),
    localrule: True
