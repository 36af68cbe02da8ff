"""Reads what a finished sweep has left in its folder of results, and works on from there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import xarray as xr
from matplotlib.figure import Figure

from moe_outliers import tokenization
from moe_outliers.metrics import measure
from moe_outliers.metrics.counts import Basis, Counts
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.report.figures.catalogue import FIGURES
from moe_outliers.report.figures.draw import function_of
from moe_outliers.report.figures.style import styled
from moe_outliers.report.tables import TABLES
from moe_outliers.storage import files, parquet, receipts, statistics_file
from moe_outliers.workflow import paths
from moe_outliers.workflow.settings import nearest

PLACES = ("results", "demo/results")
"""Where `open_results` looks: the sweep's own results, and those of `make demo`."""


@dataclass(frozen=True)
class Results:
    """The results of a finished sweep, as `mo.open` returns them.

    Attributes:
        folder: the folder named results.
    """

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The contents of the report: docs/schemas/summary.schema.json describes them."""
        return dict(files.read_json(self._path(paths.SUMMARY)))

    @cached_property
    def models(self) -> list[str]:
        """The slugs of the models, in the order of the table of models."""
        return list(map(str, self.table("models")["model"]))

    @property
    def criteria(self) -> Criteria:
        """What counted as an outlier feature."""
        return Criteria(**self.summary["settings"]["outliers"])

    def table(self, name: str) -> pd.DataFrame:
        """Read a table of all models; the table `dictionary` explains every column.

        Args:
            name: such as `features` or `intervals`.

        Raises:
            ValueError: if there is no such table, or its file is damaged.
        """
        if name not in TABLES:
            raise ValueError(f"no table {name}; {nearest(name, TABLES)}")
        table: pd.DataFrame = parquet.read(self._path(paths.TABLE, table=name)).to_pandas()
        return table

    def tokens(self, model: str) -> pa.Table:
        """Read a model's token ids: one row a sequence, as `mo.tokenize` returns them.

        Raises:
            ValueError: if there is no such model, or its file is damaged.
        """
        self._refuse_unknown(model)
        return parquet.read(self._path(paths.TOKENS, model=model), tokenization.SCHEMA)

    def statistics(self, model: str, variables: Collection[str] | None = None) -> xr.Dataset:
        """Read the statistics of a model's activations, of all its sequences.

        Args:
            model: its slug.
            variables: those to read, by docs/statistics-file.md; None for all.

        Raises:
            ValueError: if there is no such model or variable, or a file differs from its receipt.
        """
        self._refuse_unknown(model)
        for name in variables or ():
            if name not in statistics_file.VARIABLES:
                hint = nearest(name, statistics_file.VARIABLES)
                raise ValueError(f"no variable {name} in a statistics file; {hint}")
        stated = sorted(self._path(paths.RECEIPT, model=model, batch="x").parent.glob("*.json"))
        found = []
        for receipt in stated:
            path = receipt.with_suffix(".nc")
            if not path.is_file():
                raise ValueError(f"{path} is not there: run snakemake first")
            if fault := receipts.damage(path, receipts.read(receipt)):
                raise ValueError(f"{path}: {fault}: run snakemake first")
            found.append(path)
        return statistics_file.read_all(found, variables)

    def _path(self, template: str, **names: str) -> Path:
        return self.folder / Path(template.format(**names)).relative_to(paths.RESULTS)

    def _refuse_unknown(self, model: str) -> None:
        if model not in self.models:
            raise ValueError(f"{self.folder}: no model {model}; {nearest(model, self.models)}")


def open_results(folder: str | Path | None = None) -> Results:
    """Open the results of a finished sweep.

    Args:
        folder: named results, or the one that it is in. None: the first finished sweep of results/
            and demo/results/, in the working directory and then the folders above it.

    Raises:
        ValueError: if there is no finished sweep.
    """
    if folder is not None:
        given = Path(folder)
        candidates = [given, given / paths.RESULTS]
    else:
        above = ["", *("../" * n for n in range(1, len(Path.cwd().parts)))]
        candidates = [Path(f"{up}{place}") for up in above for place in PLACES]
    finished = Path(paths.SUMMARY).relative_to(paths.RESULTS)
    for candidate in candidates:
        if (candidate / finished).is_file():
            return Results(candidate)
    where = folder or f"{' and '.join(PLACES)}, here and above"
    raise ValueError(f"{where}: no finished sweep: run snakemake or `make demo` first")


def measure_model(
    statistics: xr.Dataset, tokens: pa.Table, criteria: Criteria, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Compute every metric of one model, as the sweep does.

    Args:
        statistics: of `mo.record` or `Results.statistics`.
        tokens: of the same sequences, of `mo.tokenize` or `Results.tokens`.
        criteria: what counts as an outlier feature.
        seed: of every random draw.

    Returns:
        The tables by name, among them `values` (one row a metric and sequence) and `features`;
        `mo.METRICS` explains each metric.

    Raises:
        ValueError: if the tokens are of other sequences, or the statistics have no counts at the
            magnitude of the criteria.
    """
    model = str(statistics.attrs["model"])
    tables = measure.measure(model, statistics, tokens, criteria, seed)
    return {name: table.to_pandas() for name, table in tables.items()}


def firing(statistics: xr.Dataset, criteria: Criteria, basis: Basis = "z") -> xr.DataArray:
    """Say at which sites of each sequence a feature fires: at enough positions.

    Args:
        statistics: with positions, and z_count, x_count or y_count.
        criteria: what counts as an outlier feature.
        basis: whose size must reach the magnitude: z, the norm's own value; x, its output; y, what
            the readers feel.

    Returns:
        (sequence, site, feature), bool. Its mean over `site` is the extent of each feature.

    Raises:
        ValueError: if the statistics have no counts at the magnitude.
    """
    magnitude = criteria.at(basis)
    found = Counts.of(statistics).firing(basis, magnitude, criteria.position_share)
    names = ("sequence", "site_block", "site_kind", "site_mixer")
    coordinates = {name: statistics.coords[name].variable for name in names}
    return xr.DataArray(found, coordinates, ("sequence", "site", "feature"), name=basis)


def plot(name: str, results: Results, criteria: Criteria | None = None) -> Figure:
    """Draw a figure of the report from the tables of a sweep.

    Args:
        name: of `mo.FIGURES`.
        results: as `mo.open` returns them.
        criteria: thresholds to draw; None: those of the sweep.

    Raises:
        ValueError: if there is no such figure.
    """
    if name not in FIGURES:
        raise ValueError(f"no figure {name}; {nearest(name, FIGURES)}")
    tables: Mapping[str, Any] = {each: results.table(each) for each in FIGURES[name].tables}
    with styled():
        figure, _ = function_of(name)(tables, criteria or results.criteria)
    return figure
