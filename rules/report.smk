"""The report: results/tables/summary.json, results/plots/ -> results/report.html, results/tables/answer.rst."""


report: "captions/workflow.rst"


rule report:
    """Write the page that opens with the answer, and goes on to every model and its evidence."""
    input:
        summary="results/tables/summary.json",
        plots=expand("results/plots/{figure}.{ending}", figure=FIGURES, ending=["svg", "txt"]),
        receipts=expand(pairs[1], model=models, batch=batches),
    output:
        page=report("results/report.html", caption="captions/report.rst", category="Report"),
        answer="results/tables/answer.rst",
    log:
        "logs/report.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        version=versions.REPORT,
    script:
        "../scripts/report.py"
