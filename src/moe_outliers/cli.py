"""The command `moe-outliers`: what Snakemake does not say."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_outliers import sweep

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_S = 2.0
"""How often a watched status is shown anew."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
export = typer.Typer(no_args_is_help=True, help="Write a finished sweep in a form for others.")
app.add_typer(export, name="export")

Directory = Annotated[Path, typer.Option(help="The folder in which results/ lies.")]
Overlays = Annotated[
    list[Path] | None,
    typer.Option(
        "--configfile", help="Settings that lie over config/config.yaml; may be repeated."
    ),
]
Workflow = Annotated[
    Path | None, typer.Option(help="The folder of the Snakefile; by default here or above.")
]


@app.callback()
def main() -> None:
    """Outlier features of Mixture-of-Experts models: what Snakemake does not say."""


@app.command()
def explain(
    path: Annotated[
        Path, typer.Argument(help="A file of the results, such as results/plots/x.svg.")
    ],
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Say why a file is, or is not, going to be built again."""
    from moe_outliers import explain

    found = _load(directory, configfile, workflow)
    for what, finding in explain.explain(found, path):
        typer.echo(f"{what}: {finding}")


@app.command()
def status(
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew until interrupted.")] = False,
) -> None:
    """Say how far each model is, and which pods are rented."""
    import json as text

    from rich.console import Console
    from rich.live import Live

    from moe_outliers import status

    found = _load(directory, configfile, workflow)
    if json:
        typer.echo(text.dumps(status.status(found), indent=2))
        return
    if not watch:
        Console().print(_table(status.status(found)))
        return
    with (
        Live(_table(status.status(found)), auto_refresh=False) as live,
        suppress(KeyboardInterrupt),
    ):
        while True:
            time.sleep(WATCH_S)
            live.update(_table(status.status(found)), refresh=True)


@app.command()
def doctor(directory: Directory = Path(), workflow: Workflow = None) -> None:
    """Examine this machine: Python, packages, disk, GPU, hub, SSH; each fault with its fix."""
    from moe_outliers import doctor

    root = _load(directory, None, workflow).workflow
    findings = list(doctor.examine(root, directory))
    signs = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}
    for finding in findings:
        fix = f" -> {finding.fix}" if finding.fix else ""
        typer.echo(f"{signs[finding.state]} {finding.what}: {finding.found}{fix}")
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(1)


@export.command()
def rocrate(
    folder: Annotated[Path, typer.Argument(help="Where the crate goes; must not exist yet.")],
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Write an RO-Crate: every input, tool version, parameter and output, with digests."""
    from moe_outliers import crate

    found = _load(directory, configfile, workflow)
    with _refusals():
        typer.echo(f"{folder}: {crate.write(found, folder)} files")


@export.command()
def post(
    folder: Annotated[Path, typer.Argument(help="Where the post goes; must not exist yet.")],
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Write a post: Markdown and the figures, in the sentences of the report."""
    from moe_outliers import post

    found = _load(directory, configfile, workflow)
    with _refusals():
        typer.echo(f"{folder}: {post.write(found, folder)} files")


@export.command()
def dataset(
    folder: Annotated[Path, typer.Argument(help="Where the data set goes; must not exist yet.")],
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Write a data set in the form of the Hugging Face hub: the tables as parquet, and a card."""
    from moe_outliers import dataset

    found = _load(directory, configfile, workflow)
    with _refusals():
        typer.echo(f"{folder}: {dataset.write(found, folder)} files")


def _table(found: dict[str, Any]) -> "RenderableType":
    """Draw a status: a row a model, a line for the sweep, the pods."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    steps = ["tokens", "verify", "metrics", "bootstrap"]
    table = Table("model", "batches", *steps, "progress", box=None)
    for model, row in found["models"].items():
        damaged = f" ({row['batches_invalid']} damaged)" if row["batches_invalid"] else ""
        batches = f"{row['batches_valid']}/{row['batches_total']}{damaged}"
        done = row["batches_valid"] == row["batches_total"]
        table.add_row(model, batches, *(row[s] for s in steps), "" if done else row["progress"])
    shared = "  ".join(f"{name}: {state}" for name, state in found["sweep"].items())
    pods = [Text(f"pods: {found['pods']}")] if found["pods"] is not None else []
    return Group(table, Text(shared), *pods)


def _load(directory: Path, overlays: list[Path] | None, workflow: Path | None) -> sweep.Sweep:
    with _refusals():
        return sweep.load(directory, overlays or [], workflow)


@contextmanager
def _refusals() -> Iterator[None]:
    """Say what is wrong in one line, and end with status 1."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
