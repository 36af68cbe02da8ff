"""The command `moe-outliers`: what Snakemake does not say."""

from pathlib import Path
from typing import Annotated

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


def _load(directory: Path, overlays: list[Path] | None, workflow: Path | None) -> sweep.Sweep:
    try:
        return sweep.load(directory, overlays or [], workflow)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
