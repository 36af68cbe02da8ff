"""Exports a finished sweep as an RO-Crate: inputs, program, parameters and outputs.

Source: RO-Crate 1.1; Workflow Run RO-Crate, profile Process Run Crate 0.5
(https://w3id.org/ro/wfrun/process/0.5).
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import chdir
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from moe_outliers.storage import files, receipts
from moe_outliers.storage.digests import DigestCache
from moe_outliers.versions import __version__
from moe_outliers.workflow import damage, paths
from moe_outliers.workflow.sweep import Sweep

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
LICENSE = "https://spdx.org/licenses/MIT"
INPUTS = ("config/config.yaml", "config/README.md")
PROGRAM: tuple[str, ...] = ("Snakefile", "rules/*.smk", "scripts/*.py", "envs/constraints.txt")
PROGRAM += ("src/moe_outliers/**/*.py", "src/moe_outliers/data/*")
TYPES = {
    ".nc": "application/x-netcdf",
    ".json": "application/json",
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".html": "text/html",
    ".yaml": "application/yaml",
    ".tsv": "text/tab-separated-values",
    ".rst": "text/x-rst",
    ".txt": "text/plain",
    ".md": "text/markdown",
}


def write(sweep: Sweep, folder: Path) -> int:
    """Write the crate of a sweep.

    Args:
        sweep: a sweep with results.
        folder: where the crate goes; must not exist yet.

    Returns:
        How many files it holds.

    Raises:
        ValueError: if the folder exists, or a result is missing or damaged.
    """
    files.must_be_new(folder)
    _refuse_unfinished(sweep)
    results = list(_results(sweep))
    crate = ROCrate(version="1.1")
    crate.name = "Outlier features of Mixture-of-Experts language models"
    crate.description = f"The sweep of {', '.join(sweep.models)}, with all that made it."
    crate.license = LICENSE
    crate.add(ContextEntity(crate, LICENSE, {"@type": "CreativeWork", "name": "MIT License"}))
    crate.add(
        ContextEntity(
            crate, PROFILE, {"@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
        )
    )
    crate.root_dataset["conformsTo"] = {"@id": PROFILE}
    inputs = [_file(crate, path, name) for path, name in _inputs(sweep)]
    outputs = [_file(crate, path, path.relative_to(sweep.directory)) for path in results]
    for path, name in _program(sweep.workflow):
        _file(crate, path, name)
    _action(crate, sweep, inputs, outputs, newest=max(p.stat().st_mtime for p in results))
    with files.whole_folder(folder) as part:
        crate.write(part)
    return sum(path.is_file() for path in folder.rglob("*"))


def _refuse_unfinished(sweep: Sweep) -> None:
    """Make sure that every result exists and is as its rule wrote it."""
    steps = [path.format(model=model) for model in sweep.models for path in paths.STEPS.values()]
    damage.refuse_damaged(sweep.directory, [*steps, *paths.SHARED.values()])
    with chdir(sweep.directory):
        for model in sweep.models:
            pairs = sweep.pairs(model)
            faults = damage.pair_faults(pairs, DigestCache(paths.DIGEST_CACHE))
            for path in (pair.statistics for pair in pairs):
                fault = faults.get(path) or (None if path.exists() else "is not there")
                if fault:
                    raise ValueError(f"{path}: {fault}: run snakemake first")


def _action(
    crate: ROCrate, sweep: Sweep, inputs: list[Any], outputs: list[Any], newest: float
) -> None:
    """Describe the run: inputs, parameters, software and outputs."""
    tool = ContextEntity(
        crate,
        "#moe-outliers",
        {
            "@type": "SoftwareApplication",
            "name": "moe-outliers",
            "version": __version__,
            "softwareRequirements": [{"@id": entity.id} for entity in _software(crate, sweep)],
        },
    )
    parameters = [
        crate.add(
            ContextEntity(
                crate,
                f"#parameter-{name}",
                {"@type": "PropertyValue", "name": name, "value": str(value)},
            )
        )
        for name, value in _flat(sweep.config)
    ]
    when = datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
    action = ContextEntity(
        crate,
        "#run",
        {
            "@type": "CreateAction",
            "name": "snakemake",
            "description": "texts, tokens, statistics, verdicts, metrics, figures, tables",
            "endTime": when,
            "instrument": {"@id": tool.id},
            "object": [{"@id": entity.id} for entity in [*inputs, *parameters]],
            "result": [{"@id": entity.id} for entity in outputs],
        },
    )
    crate.add(tool, action)
    crate.root_dataset["mentions"] = {"@id": action.id}


def _software(crate: ROCrate, sweep: Sweep) -> Iterator[Any]:
    """Yield the software: Snakemake here, and what the receipts of the sweep name."""
    used = {("snakemake", importlib.metadata.version("snakemake"))}
    for model in sweep.models:
        for pair in sweep.pairs(model):
            try:
                receipt = receipts.read(sweep.directory / pair.receipt)
            except (OSError, ValueError):
                continue
            used |= {(name, version) for name, version in receipt.versions.items()}
            used.add(("device", receipt.device))
    for name, version in sorted(used):
        properties = {"@type": "SoftwareApplication", "name": name, "version": version}
        yield crate.add(ContextEntity(crate, f"#{name}-{version}".replace(" ", "-"), properties))


def _file(crate: ROCrate, path: Path, name: Path | str) -> Any:
    properties = {
        "name": Path(name).name,
        "sha256": files.sha256(path),
        "contentSize": str(path.stat().st_size),
        "encodingFormat": TYPES.get(path.suffix, "text/plain"),
    }
    return crate.add_file(path, str(name), properties=properties)


def _results(sweep: Sweep) -> Iterator[Path]:
    """Yield the results: files with a recorded digest, and the batches; nothing else."""
    batches = {path for model in sweep.models for pair in sweep.pairs(model) for path in pair[:2]}
    for path in sorted((sweep.directory / paths.RESULTS).rglob("*.*")):
        name = path.relative_to(sweep.directory)
        hidden = any(part.startswith(".") for part in name.parts)
        records = (sweep.directory / paths.record_of(p) for p in (name, *name.parents[:-2]))
        if path.is_file() and not hidden and (name in batches or any(r.is_file() for r in records)):
            yield path


def _inputs(sweep: Sweep) -> Iterator[tuple[Path, str]]:
    for name in INPUTS:
        yield sweep.workflow / name, f"workflow/{name}"
    table = sweep.workflow / sweep.config["table"]
    yield table, f"workflow/config/{table.name}"
    for place, overlay in enumerate(sweep.overlays, 1):  # two may have one name
        yield overlay, f"workflow/overlays/{place}/{overlay.name}"


def _program(workflow: Path) -> Iterator[tuple[Path, str]]:
    for pattern in PROGRAM:
        for path in sorted(workflow.glob(pattern)):
            yield path, f"workflow/{path.relative_to(workflow)}"


def _flat(config: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
