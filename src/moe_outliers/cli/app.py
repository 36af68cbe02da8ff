"""The command `moe-outliers`: inspect, explain and export a sweep; add a model to its table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moe_outliers.workflow import paths, sweep

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_S = 2.0
"""Seconds between two updates of a watched status."""

WIDE = 200
"""Columns of a status that goes to a file or another program."""

STYLES = {"missing": "dim", "damaged": "red", "invalid": "red"}


class Program(TyperGroup):
    """All commands: an error is one line, and the exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _refusals():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Program, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
export = typer.Typer(no_args_is_help=True, help="Write a finished sweep in a form for others.")
app.add_typer(export, name="export")

Directory = Annotated[Path, typer.Option(help="The folder in which results/ lies.")]
Folder = Annotated[Path, typer.Argument(help="Where the export goes; must not exist yet.")]
Overlays = Annotated[
    list[Path] | None,
    typer.Option(
        "--configfile", help="Settings that override config/config.yaml; may be repeated."
    ),
]
Workflow = Annotated[
    Path | None, typer.Option(help="The folder of the Snakefile; by default here or above.")
]


@app.callback()
def main() -> None:
    """Inspect, explain and export a sweep."""


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
    from moe_outliers.cli import explain

    loaded = _load(directory, configfile, workflow)
    for what, finding in explain.explain(loaded, path):
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

    from moe_outliers.cli import status

    loaded = _load(directory, configfile, workflow)
    if json:
        typer.echo(text.dumps(status.status(loaded), indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    if not watch:
        console.print(_table(status.status(loaded)))
        return
    if not console.is_terminal:
        raise ValueError("--watch needs a terminal: leave it away, or ask for --json")
    with (
        suppress(KeyboardInterrupt),
        Live(_table(status.status(loaded)), console=console, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(WATCH_S)
            live.update(_table(status.status(loaded)), refresh=True)


@app.command()
def doctor(directory: Directory = Path(), workflow: Workflow = None) -> None:
    """Examine this machine: packages, disk, GPU, hub, RunPod, SSH; each fault with its fix."""
    from moe_outliers.cli import doctor

    signs = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}
    broken = False
    for finding in doctor.examine(sweep.root(workflow), directory):
        fix = f"\n        {finding.fix}" if finding.fix else ""
        typer.echo(f"{signs[finding.state]} {finding.what}: {finding.found}{fix}")
        broken |= finding.state == "fault"
    if broken:
        raise typer.Exit(1)


@app.command()
def add(
    repo: Annotated[str, typer.Argument(help="A repository of the hub, or a folder.")],
    *,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit; by default main as it is now.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its slug in paths, tables, figures.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="The table of models; by default that of the settings.")
    ] = None,
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Add a model to the table: its row is counted from its checkpoint."""
    from moe_outliers.cli import add

    loaded = _load(Path(), configfile, workflow)
    path = table or loaded.workflow / loaded.config["table"]
    for line in add.add(loaded.workflow, path, repo, revision, name):
        typer.echo(line)


@export.command()
def rocrate(
    folder: Folder,
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Write an RO-Crate: every input, tool version, parameter and output, with digests."""
    _export("crate", folder, _load(directory, configfile, workflow))


@export.command()
def post(
    folder: Folder,
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Write a post: Markdown and the figures, in the sentences of the report."""
    _export("post", folder, _load(directory, configfile, workflow))


@export.command()
def dataset(
    folder: Folder,
    directory: Directory = Path(),
    configfile: Overlays = None,
    workflow: Workflow = None,
) -> None:
    """Write a data set in the form of the Hugging Face hub: the tables as parquet, and a card."""
    _export("dataset", folder, _load(directory, configfile, workflow))


def _export(form: str, folder: Path, loaded: sweep.Sweep) -> None:
    """Write an export by the module of its form."""
    try:
        module = import_module(f"moe_outliers.cli.export.{form}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed: pip install -c envs/constraints.txt -e '.[export]'"
        ) from None
    typer.echo(f"{folder}: {module.write(loaded, folder)} files")


def _table(progress: dict[str, Any]) -> "RenderableType":
    """Draw a status: a row a model, the progress of each, the products of all, the pods."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    steps = list(paths.STEPS)
    table = Table("model", "batches", *steps, box=None)
    told = []
    for model, row in progress["models"].items():
        damaged = f" ({row['batches_invalid']} damaged)" if row["batches_invalid"] else ""
        batches = Text(f"{row['batches_valid']}/{row['batches_total']}")
        states = [Text(row[step], STYLES.get(row[step], "")) for step in steps]
        table.add_row(model, batches.append(damaged, STYLES["damaged"]), *states)
        if row["progress"] and row["batches_valid"] < row["batches_total"]:
            line = f" {model}: {row['progress']}"
            told.append(Text(line, no_wrap=True, overflow="ellipsis"))
    shared = Text(" all models: ")
    for name, state in progress["sweep"].items():
        shared.append(f"{name} ").append(state, STYLES.get(state, "")).append("  ")
    return Group(table, *told, shared, *_pods(progress["pods"]))


def _pods(pods: Any) -> "Iterator[RenderableType]":
    """Draw what each rented machine does and costs."""
    from rich.table import Table
    from rich.text import Text

    if pods is None:
        return
    if isinstance(pods, dict):
        yield Text(f" pods: {pods['error']}", "red")
        return
    table = Table("job", "pod", "GPU", "phase", "files", "minutes", "dollars", box=None)
    for job in pods:
        alive = "" if job["alive"] else "dim"
        files = f"{job['done']}/{job['files']}"
        cells = [job["job"], job["pod"] or "-", job["gpu"], job["phase"], files]
        cells += [f"{job['minutes']:.1f}", f"{job['dollars']:.4f}"]
        table.add_row(*map(Text, cells), style=alive)
    yield table
    alive = sum(job["alive"] for job in pods)
    spent = sum(job["dollars"] for job in pods)
    yield Text(f" pods that may be alive: {alive}, spent so far: ${spent:.4f} (an estimate)")


def _load(directory: Path, overlays: list[Path] | None, workflow: Path | None) -> sweep.Sweep:
    return sweep.load(directory, overlays or [], workflow)


@contextmanager
def _refusals() -> Iterator[None]:
    """Print an error as one line, and end with status 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe: no error
            raise
        from moe_outliers.workflow import script

        typer.echo(f"error: {script.said(error)}", err=True)
        raise typer.Exit(1) from None
