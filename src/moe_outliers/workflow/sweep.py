"""A sweep without Snakemake: its settings, models and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_outliers.storage import receipts
from moe_outliers.workflow import paths, resources, settings


@dataclass(frozen=True)
class Sweep:
    """The settings of a sweep and the folder of its results.

    Attributes:
        workflow: the folder of the Snakefile.
        directory: the folder in which results/ lies.
        overlays: settings files that override config/config.yaml, in order.
        config: all settings, merged.
        models: the rows of the selected models by slug.
    """

    workflow: Path
    directory: Path
    overlays: tuple[Path, ...]
    config: dict[str, Any]
    models: dict[str, settings.Row]

    def pairs(self, model: str) -> list[receipts.Pair]:
        """Return a model's batches, with paths relative to the directory."""
        identity = receipts.identity(self.models[model], self.config)
        return receipts.pairs(model, identity, paths.STATISTICS, paths.RECEIPT)


def load(directory: Path, overlays: Sequence[Path], workflow: Path | None = None) -> Sweep:
    """Read the settings of a sweep.

    Args:
        directory: the folder in which results/ lies.
        overlays: settings files that override config/config.yaml, in order.
        workflow: the folder of the Snakefile; None: this folder or the nearest above it.

    Raises:
        ValueError: if there is no Snakefile or no such directory, or the settings are not valid.
    """
    above = root(workflow)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder: --directory names the one with results/")
    config: dict[str, Any] = {}
    for path in (above / "config/config.yaml", *overlays):
        config = _over(config, _settings(path))
    rows = settings.models(config, above / config["table"], above / "config/schemas")
    return Sweep(above, directory, tuple(overlays), config, rows)


def described(row: settings.Row, config: Mapping[str, Any]) -> settings.Row:
    """Return all that rules need to know of a model.

    Args:
        row: of the table of models.
        config: all settings.

    Returns:
        The row, with the resources that its extraction needs, `identity` (what its receipts must
        agree with), `shape` (what the checkpoint must agree with) and `dtype` (the precision that
        it is computed in).
    """
    more = {
        "identity": receipts.identity(row, config),
        "shape": settings.shape(row),
        "dtype": receipts.dtype_of(row["model"], config),
    }
    return row | resources.needs(row) | more


def root(workflow: Path | None) -> Path:
    """Return the folder of the Snakefile: as given, or this one, or the nearest above it.

    Raises:
        ValueError: if there is none.
    """
    here = Path.cwd()
    candidates = [workflow] if workflow else [here, *here.parents]
    for folder in candidates:
        if (folder / "Snakefile").is_file():
            return folder
    raise ValueError(f"{candidates[0]}: no Snakefile here or above: go to the workflow's folder")


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such settings file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: no settings: it must hold keys with values, such as `seed: 0`")
    return values


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Override settings by others, key by key, as Snakemake does."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _over(merged[key], value) if nested else value
    return merged
