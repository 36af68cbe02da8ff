"""The report: one page of HTML for offline use, keyboard and screen reader; and its first lines.

Its contents come from summary.json, the figures, their captions and the receipts.
"""

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report import conditions, sentences, words
from moe_outliers.report.figures.captions import caption, share
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.stats.multiplicity import LEVEL
from moe_outliers.storage import receipts
from moe_outliers.versions import __version__

TEMPLATE = "report.html.jinja"
SECTIONS = ("Comparison", "Depth", "Experts", "Controls", "Legacy")
FEATURES = 12

MARKS = {
    "systematic": "●",
    "banded": "■",
    "probabilistic": "▲",
    "mixed": "◐",
    "out_of_reach": "✖",
    "indeterminate": "◆",
    "no_outliers": "○",
    "unclassified": "✚",
}
"""The mark of each class of a model, as in the figures; it stands beside the word, never alone."""


def render(summary: Mapping[str, Any], plots: Path, costs: Sequence[Mapping[str, Any]]) -> str:
    """Write the report.

    Args:
        summary: results/tables/summary.json.
        plots: the folder of the figures, {name}.svg, and of their descriptions, {name}.txt.
        costs: as `costs` returns them.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"interval": words.interval, "named": words.named}
    template = (resources.files("moe_outliers") / "data" / TEMPLATE).read_text(encoding="utf-8")
    criteria = Criteria(**summary["settings"]["outliers"])
    figures = {name: _figure(name, plots, criteria) for name in FIGURES}
    return environment.from_string(template).render(
        version=__version__,
        summary=summary,
        headline=sentences.headline(summary),
        otherwise=list(sentences.otherwise(summary)),
        glossary=words.glossary(criteria),
        measured=conditions.measured(summary),
        texts=conditions.texts(summary),
        level_said=conditions.level(summary),
        classes=[(kind, words.CLASSES[kind]) for kind in sentences.classes(summary)],
        marks=MARKS,
        level=share(LEVEL),
        differences=list(sentences.differences(summary)),
        undecidable=sentences.undecidable(summary),
        correlations=list(sentences.correlations(summary)),
        sections={s: [f for f in figures.values() if f["section"] == s] for s in SECTIONS},
        models=[_model(model, own) for model, own in words.models_of(summary).items()],
        validation=summary["validation"],
        costs=costs,
        dollars=sum(row["dollars"] or 0 for row in costs),
    )


def opening(summary: Mapping[str, Any]) -> str:
    """Write the first lines of the report in reStructuredText: results/tables/answer.rst."""
    lines = [f"* {_plain(line)}" for line in sentences.answer(summary)]
    return "\n".join(["The answer", "----------", "", *lines, ""])


def costs(batches: Sequence[receipts.Receipt]) -> list[dict[str, Any]]:
    """List the machine of each model, and what rented ones cost at their hourly price.

    Args:
        batches: the receipts of all batches.

    Returns:
        A row a model and machine: model, device, pod, seconds, dollars; the last three None where
        the machine was one's own.
    """
    rows: dict[tuple[str, str, str | None], dict[str, Any]] = {}
    for receipt in batches:
        pod = receipt.pod
        row = rows.setdefault(
            (receipt.model, receipt.device, pod.id if pod else None),
            {"model": receipt.model, "device": receipt.device, "pod": pod.id if pod else None}
            | {"seconds": None, "dollars": None, "versions": dict(receipt.versions)},
        )
        if pod:
            row["seconds"] = max(row["seconds"] or 0.0, pod.seconds)
            if pod.price_usd_per_h is not None:
                row["dollars"] = row["seconds"] / 3600 * pod.price_usd_per_h
    return list(rows.values())


def _figure(name: str, plots: Path, criteria: Criteria) -> dict[str, str]:
    entry = FIGURES[name]
    data = base64.b64encode((plots / f"{name}.svg").read_bytes()).decode()
    return {
        "name": name,
        "title": entry.title,
        "section": entry.section,
        "caption": caption(name, criteria),
        "words": (plots / f"{name}.txt").read_text(encoding="utf-8"),
        "source": f"data:image/svg+xml;base64,{data}",
    }


def _model(model: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    features = [row for row in summary["features"] if row["relation"]]
    return {
        "name": model,
        "found": summary,
        "how_sure": sentences.how_sure(model, summary),
        "evidence": sentences.evidence(summary),
        "by_class": sentences.by_class(summary),
        "numbers": list(sentences.numbers(summary)),
        "features": features[:FEATURES],
        "controls": list(sentences.controls(summary)),
        "cross_batch": sentences.cross_batch(summary),
        "legacy": list(sentences.legacy(summary)),
        "warnings": [row["detail"] for row in summary["warnings"]],
    }


def _plain(text: str) -> str:
    """Escape what reStructuredText would read as markup."""
    return "".join(f"\\{c}" if c in "*`|_\\" else c for c in text)
