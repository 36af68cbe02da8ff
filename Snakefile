"""Outlier features of Mixture-of-Experts language models: texts to figures."""

from snakemake.utils import min_version

from snakemake_executor_plugin_runpod import costs

min_version("9.27")
costs.show(workflow)  # at the end of a dry run with --profile runpod


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


rule all:
    default_target: True
    input:
        expand(pairs, model=models, batch=batches),
        expand("results/verify/{model}.json", model=models),
        "results/tables/summary.json",
        "results/figures",
        "results/report.html",
    localrule: True
