"""Under what conditions the numbers hold: the texts, the settings, the level of the intervals."""

from moe_outliers.report.words import Summary, models_of

FEW_DOCUMENTS = 3
"""At most so many documents are named one by one."""


def measured(summary: Summary) -> str:
    """Say on how many sequences of how many tokens the models were measured."""
    models = models_of(summary).values()
    sequences = " or ".join(map(str, sorted({found["sequences"] for found in models})))
    tokens = " or ".join(f"{n:,}" for n in sorted({found["tokens"] for found in models}))
    said = "model was" if len(models) == 1 else "models were"
    return f"{len(models)} {said} measured on {sequences} sequences of {tokens} tokens each."


def texts(summary: Summary) -> str:
    """Name the texts, and what else of the settings changes every number."""
    settings = summary["settings"]
    data, documents = settings["data"], settings["documents"]
    source = {"bundled": "the text that ships with the project"}.get(
        data["source"], " ".join(filter(None, (data["path"], data["subset"])))
    )
    pinned = data["source"] != "bundled" and data["revision"] != "local"
    revision = f" at {data['revision'][:12]}" if pinned else ""
    few = f" ({', '.join(documents)})" if len(documents) <= FEW_DOCUMENTS else ""
    start = {
        "none": "no special token at the start",
        "model": "the special tokens at the start that each model's tokenizer adds",
    }[data["bos"]]
    stored = " or ".join(sorted({found["dtype"] for found in models_of(summary).values()}))
    alphas = ", ".join(f"{alpha:g}" for alpha in settings["extract"]["alphas"])
    count = f"{len(documents)} document{'s' * (len(documents) != 1)}"
    return (
        f"Texts: {source}{revision}, {count}{few}; {start}; norms' outputs in {stored}; thresholds "
        f"{alphas}."
    )


def level(summary: Summary) -> str:
    """Say what level the intervals have, and what they cover at their worst."""
    models = models_of(summary).values()
    confidence = f"{100 * summary['settings']['confidence']:g} %"
    parts = [found for found in models if found["documents"] < found["sequences"]]
    said = f"Intervals are of {confidence} confidence, over sequences of independent texts."
    if parts:
        documents = " or ".join(str(n) for n in sorted({found["documents"] for found in parts}))
        said = (
            f"Intervals would be of {confidence} confidence for independent texts; these are parts "
            f"of {documents} document{'s' * (documents != '1')}, so that no level is claimed."
        )
    worst = _worst(summary, {found["sequences"] for found in models})
    return f"{said} {worst}" if worst else said


def _worst(summary: Summary, sizes: set[int]) -> str:
    """Say which kind of simulated data the intervals cover worst at these numbers of sequences."""
    used = [
        row
        for row in summary["validation"]["coverage"]
        if row["used"] and row["n"] in sizes and row["coverage_share"] is not None
    ]
    parts = []
    for dependent, whose in ((False, "independent"), (True, "dependent")):
        rows = [row for row in used if row["dependent"] == dependent]
        if rows:
            worst = min(rows, key=lambda row: row["coverage_share"])
            parts.append(
                f"{worst['coverage_share']:.0%} of the time on {whose} texts "
                f"({worst['case'].replace('_', ' ')}, n = {worst['n']})"
            )
    return (
        f"At worst, on simulated data, they hold the truth {' and '.join(parts)}." if parts else ""
    )
