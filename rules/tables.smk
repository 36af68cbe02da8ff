"""Tables of the sweep: everything measured -> results/tables/*.{csv,parquet}, results/tables/summary.json."""

tables = [
    "models",
    "intervals",
    "values",
    "sequences",
    "features",
    "feature_tokens",
    "profile",
    "blocks",
    "experts",
    "sensitivity",
    "stability",
    "cross_batch",
    "provenance",
    "differences",
    "correlations",
    "stable_ranges",
    "legacy",
    "reference",
    "published",
    "warnings",
    "validate_coverage",
    "validate_selection",
    "validate_classes",
    "validate_discoveries",
    "metrics",
    "dictionary",
]


rule tables:
    """Stack the tables of all models, compare them with earlier work, and explain each column."""
    input:
        metrics=rules.comparison.input.values,
        others=expand(
            "results/metrics/{model}.{table}.parquet",
            model=models,
            table=[
                "sequences",
                "features",
                "feature_tokens",
                "profile",
                "blocks",
                "experts",
                "sensitivity",
                "stability",
                "cross_batch",
                "provenance",
            ],
        ),
        intervals=expand("results/bootstrap/{model}.parquet", model=models),
        comparison=[
            "results/comparison/intervals.parquet",
            "results/comparison/differences.parquet",
            "results/comparison/correlations.parquet",
        ],
        validation=[
            "results/validate/coverage.parquet",
            "results/validate/selection.parquet",
            "results/validate/classes.parquet",
            "results/validate/discoveries.parquet",
        ],
        reference=here("config/reference.yaml"),
    output:
        parquet=expand("results/tables/{table}.parquet", table=tables),
        csv=expand("results/tables/{table}.csv", table=tables),
        summary="results/tables/summary.json",
    log:
        "logs/tables.log",
    localrule: True
    conda:
        "../envs/analysis.yaml"
    params:
        rows=list(rows.values()),
        criteria=config["outliers"],
        seed=config["seed"],
        data={key: data[key] for key in ["source", "path", "subset", "revision", "bos"]},
        extract={key: config["extract"][key] for key in ["dtype", "alphas"]},
        version=versions.TABLES,
    script:
        "../scripts/tables.py"
