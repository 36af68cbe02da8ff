"""The style of all figures: colours, marks, axes, and files that are the same every time."""

import io
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_outliers.storage import files

COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D31",
)  # fmt: skip
"""Okabe and Ito's palette, its yellow replaced by a brown that shows on white."""

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))

CLASSES = {
    "systematic": ("#D55E00", "o", "S"),
    "indeterminate": ("#E69F00", "D", "I"),
    "banded": ("#0072B2", "s", "B"),
    "probabilistic": ("#009E73", "^", "P"),
    "shift_invariant": ("#CC79A7", "X", "V"),
    "unclassified": ("#56B4E9", "P", "U"),
    "none": ("#999999", ".", "·"),
}
"""Colour, mark and letter of each class of a feature."""

STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "moe-outliers",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Look:
    """Colour, mark and line of a model in every figure."""

    colour: str
    mark: str
    line: Any


def looks(models: Any) -> dict[str, Look]:
    """Assign each model its look, by its number in the table of models alone."""
    by_model = {}
    for model, number in zip(models["model"], models["number"], strict=True):
        place = int(number) - 1
        mark, line = MARKS[place % len(MARKS)], LINES[place % len(LINES)]
        by_model[str(model)] = Look(COLOURS[place % len(COLOURS)], mark, line)
    return by_model


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style of this project, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def grid(count: int, *, columns: int = 4, width: float = 2.3, height: float = 2.0) -> Any:
    """Make a figure with a panel for each of `count` models; spare panels stay empty.

    Returns:
        The figure, and its axes in reading order.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 4.5), height * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def legend(figure: Figure, known: dict[str, Look], shown: Iterable[str], reason: str) -> str:
    """Add a legend of the models, and name those that are not shown with the reason.

    Returns:
        The sentence about those that are not shown, for the description of the figure.
    """
    names = [name for name in known if name in set(shown)]
    handles = [
        Line2D(
            [], [], color=known[n].colour, marker=known[n].mark, linestyle=known[n].line, label=n
        )
        for n in names
    ]
    told = not_shown(known, names, reason)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4,
        title="\n".join(textwrap.wrap(told, int(figure.get_figwidth() * 16))) or None,
        title_fontproperties={"size": 7, "style": "italic"},
    )
    return told


def not_shown(known: Iterable[str], shown: Iterable[str], reason: str) -> str:
    """Say which models a figure does not show, and why; nothing if it shows all."""
    missing = [name for name in known if name not in set(shown)]
    return f" Not shown: {', '.join(missing)} ({reason})." if missing else ""


def counted(axes: Axes, most: float, room: float = 1.3) -> None:
    """Scale an axis of counts: linear up to 1, logarithmic above; and set its ticks.

    Args:
        axes: its vertical axis is scaled.
        most: the largest count.
        room: the axis ends at so many times the largest count, so that no mark is cut off.
    """
    ticks = [0, *(step * 10**power for power in range(6) for step in (1, 2, 5))]
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(-0.08, max(1, most) * room)
    shown = [tick for tick in ticks if tick <= max(1, most) * room]
    axes.set_yticks(shown, [f"{tick:,}" for tick in shown])
    axes.minorticks_off()


def empty(axes: Axes, model: str, reason: str) -> None:
    """Write into a model's panel why it is empty."""
    axes.set_title(model)
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, wrap=True)


def texts(figure: Figure) -> str:
    """Return all texts of a figure."""
    return "\n".join(
        artist.get_text() for artist in figure.findobj(mpl.text.Text) if artist.get_text()
    )


def save(figure: Figure, base: Path, title: str, description: str) -> None:
    """Write a figure as SVG, PDF and PNG; equal figures give equal bytes.

    Args:
        figure: what to write.
        base: path without an ending.
        title: its heading.
        description: what it shows, for a screen reader.
    """
    figure.suptitle(title, fontsize=10)
    told = {"Title": title, "Description": description}
    metadata = {
        "svg": told | {"Date": None, "Creator": None},
        "pdf": {"Title": title, "CreationDate": None, "Producer": None, "Creator": None},
        "png": told | {"Software": None},
    }
    for ending, entries in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, metadata=entries)
        data = buffer.getvalue()
        if ending == "svg":
            data = _accessible(data.decode(), title, description).encode()
        files.write_bytes(base.with_suffix(f".{ending}"), data)


def _accessible(svg: str, title: str, description: str) -> str:
    """Give an SVG the title and description that a screen reader speaks."""
    head, mark, rest = svg.partition("<svg ")
    opening, close, body = rest.partition(">")
    attributes = f'role="img" aria-label={quoteattr(f"{title}. {description}")} '
    told = f"\n <title>{escape(title)}</title>\n <desc>{escape(description)}</desc>"
    return f"{head}{mark}{attributes}{opening}{close}{told}{body}"
