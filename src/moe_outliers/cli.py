"""The command `moe-outliers`: what Snakemake does not say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_outliers import sweep

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

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
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as docs/status.md says.")
    ] = False,
) -> None:
    """Say how far each model is, and which pods are rented."""
    import json as text

    from moe_outliers import status

    found = status.status(_load(directory, configfile, workflow))
    if json:
        typer.echo(text.dumps(found, indent=2))
        return
    _show(found)


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


export = typer.Typer(no_args_is_help=True, help="Write a finished sweep in a form for others.")
app.add_typer(export, name="export")


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


def _show(found: dict[str, Any]) -> None:
    """Print a status as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "batches", "tokens", "verify", "metrics", "bootstrap", box=None)
    for model, row in found["models"].items():
        damaged = f" ({row['batches_invalid']} damaged)" if row["batches_invalid"] else ""
        batches = f"{row['batches_valid']}/{row['batches_total']}{damaged}"
        table.add_row(
            model, batches, row["tokens"], row["verify"], row["metrics"], row["bootstrap"]
        )
    console = Console()
    console.print(table)
    console.print("  ".join(f"{name}: {state}" for name, state in found["sweep"].items()))
    if found["pods"] is not None:
        console.print_json(data=found["pods"])


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
