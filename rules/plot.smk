"""Figures: results/tables/*.parquet -> results/plots/{figure}.{svg,pdf,png,txt} -> results/figures/."""


rule plot:
    """Draw one figure."""
    input:
        tables=tables_of,
    output:
        svg=report(
            "results/plots/{figure}.svg",
            caption="captions/plot.rst",
            category=figure("section"),
            labels={"figure": "{figure}"},
        ),
        pdf="results/plots/{figure}.pdf",
        png="results/plots/{figure}.png",
        words="results/plots/{figure}.txt",
    log:
        "logs/plot/{figure}.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        title=figure("title"),
        criteria=config["outliers"],
        version=versions.PLOT,
    script:
        "../scripts/plot.py"


rule figures:
    """Collect the figures of the sweep; a missing batch of any model is computed first."""
    input:
        plots=expand(
            "results/plots/{figure}.{ending}", figure=FIGURES, ending=["svg", "pdf", "png"]
        ),
        batches=expand(pairs, model=models, batch=batches),
    output:
        folder=directory("results/figures"),
    log:
        "logs/figures.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        version=versions.PLOT,
    script:
        "../scripts/figures.py"
