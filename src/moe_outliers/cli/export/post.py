"""Exports a finished sweep as a post: Markdown with its figures, in the sentences of the report."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report import page, sentences
from moe_outliers.report.figures.captions import caption
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.report.words import models_of
from moe_outliers.storage import files
from moe_outliers.versions import __version__
from moe_outliers.workflow import damage, paths
from moe_outliers.workflow.sweep import Sweep

OPENING = "features_by_site"
"""The first figure of the post."""


def write(sweep: Sweep, folder: Path) -> int:
    """Write post.md and the figures that it shows.

    Args:
        sweep: a sweep with its tables and figures.
        folder: where the post goes; must not exist yet.

    Returns:
        How many files it holds.

    Raises:
        ValueError: if the folder exists, or tables or figures are missing or damaged.
    """
    files.must_be_new(folder)
    described = {name: paths.DESCRIPTION.format(figure=name) for name in FIGURES}
    needed = [paths.SUMMARY, paths.FIGURES, *described.values()]
    damage.refuse_damaged(sweep.directory, needed)
    shown = {name: sweep.directory / paths.FIGURES / f"{name}.svg" for name in FIGURES}
    summary = files.read_json(sweep.directory / paths.SUMMARY)
    words = {n: (sweep.directory / path).read_text("utf-8") for n, path in described.items()}
    text = "\n".join(_lines(summary, words))
    with files.whole_folder(folder) as part:
        (part / "images").mkdir(parents=True)
        for name, path in shown.items():
            shutil.copyfile(path, part / f"images/{name}.svg")
        files.write_bytes(part / "post.md", text.encode())
    return 1 + len(shown)


def _lines(summary: Mapping[str, Any], words: Mapping[str, str]) -> Iterator[str]:
    models = models_of(summary)
    noun = "model" if len(models) == 1 else "models"
    yield f"# Outlier features of {len(models)} Mixture-of-Experts {noun}\n"
    first, *more = sentences.answer(summary)
    yield f"{_plain(first)}\n"
    criteria = Criteria(**summary["settings"]["outliers"])
    yield from _figure(OPENING, words, criteria)
    yield from (f"- {_plain(line)}" for line in more)
    yield "\n## The models beside each other\n"
    compared = [line for line, _ in sentences.differences(summary)]
    compared = compared or ["No difference between two models survives Holm's correction."]
    compared += sentences.correlations(summary)
    yield from (f"- {_plain(line)}" for line in compared)
    for section in page.SECTIONS:
        names = [n for n, entry in FIGURES.items() if entry.section == section and n != OPENING]
        if section != page.SECTIONS[0] and names:
            yield f"\n## {section}\n"
        for name in names:
            yield from ("", *_figure(name, words, criteria))
    for model, own in models.items():
        yield from _model(model, own)
    yield "\n## How it was measured\n"
    yield (
        f"A feature fires at a site where at least {criteria.position_share:.0%} of the "
        f"positions of a sequence have an abs(z) of {criteria.at('z'):g} or more, z being the "
        f"norm's own value, before its gain. It is an outlier feature if it fires at "
        f"{criteria.layer_share:.0%} of the sites on sequences other than those that it is "
        f"scored on. Intervals are over sequences. Made by moe-outliers {__version__}, "
        f"seed {summary['settings']['seed']}."
    )
    yield ""


def _model(model: str, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n## {model}\n"
    yield f"{_plain(sentences.how_sure(model, summary))}\n"
    yield "| | estimate, interval | made by |\n| --- | --- | --- |"
    yield from (f"| {_plain(' | '.join(row))} |" for row in sentences.numbers(summary))
    yield ""
    lines = [*sentences.controls(summary), sentences.cross_batch(summary)]
    yield from (f"- {_plain(line)}" for line in lines)
    yield from (f"- {_plain(line)}" for line in sentences.legacy(summary))
    yield from (f"- Warning: {_plain(row['detail'])}" for row in summary["warnings"])


def _figure(name: str, words: Mapping[str, str], criteria: Criteria) -> Iterator[str]:
    entry = FIGURES[name]
    told = " ".join(words[name].split()).replace("[", "(").replace("]", ")")
    yield f"![{told}](images/{name}.svg)\n"
    shown = caption(name, criteria).replace("``", "`")
    yield f"*{entry.title}.* {_plain(shown)}\n"


def _plain(text: str) -> str:
    """Escape what Markdown would read as markup."""
    return "".join(f"\\{c}" if c in "*_<" else c for c in text)
