"""Checks one model's statistics, and writes a verdict: every check by name, passed or not, and why.

A check is a function of the merged dataset that yields what is wrong. The verdict is always
written; the metrics of an invalid model then fail with it, and other models continue.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr

from moe_outliers.storage import receipts, statistics_file
from moe_outliers.storage.statistics_file import VARIABLES

Verdict = dict[str, Any]
"""model, valid, checks: a list of {name, passed, message}, and notes (which fail nothing)."""


@dataclass(frozen=True)
class Expectation:
    """What a model's statistics must agree with.

    Attributes:
        row: the model's row of the table: layers, width, experts and top_k are compared.
        alphas: thresholds, ascending.
        tokens: positions of a sequence.
        sequences: sequences of the sweep.
    """

    row: dict[str, Any]
    alphas: list[float]
    tokens: int
    sequences: int


def verdict(
    model: str, pairs: list[receipts.Pair], tokens: pa.Table, expectation: Expectation
) -> Verdict:
    """Check every pair of a model, and the dataset that they make together.

    Args:
        model: slug of the model.
        pairs: all batches, in order.
        tokens: the model's tokens file.
        expectation: what the statistics must agree with.

    Returns:
        The verdict; no fault of a file raises an exception.
    """
    ids = tokens["ids_sha256"].to_pylist()
    faults, sound = _receipts(pairs, ids)
    checked = {
        "receipts": faults,
        "provenance": list(_provenance(sound)),
        "sequences": _repeats(ids),
    }
    devices = sorted({receipt.device for receipt in sound})
    notes = [f"computed on several devices: {', '.join(devices)}"] if len(devices) > 1 else []
    if not checked["receipts"]:
        try:
            data = statistics_file.read_all([path for path, _, _ in pairs])
        except ValueError as error:
            checked["readable"] = [str(error)]
        else:
            checked["readable"] = []
            checked["contract"] = list(_contract(data, expectation))
            if (kind := data.attrs.get("norm_dtype")) != "bfloat16":
                notes.append(f"union_count is not compared with x_count: the norms are {kind}")
            if not checked["contract"]:
                checked |= {name: list(check(data)) for name, check in CHECKS.items()}
                checked["table"] = list(_table(data, expectation.row))
    checks = [
        {"name": name, "passed": not faults, "message": "; ".join(faults[:5])}
        for name, faults in checked.items()
    ]
    valid = all(check["passed"] for check in checks)
    return {"model": model, "valid": valid, "checks": checks, "notes": notes}


def refuse_invalid(verdict: Verdict) -> None:
    """Refuse a model whose verdict is invalid.

    Raises:
        ValueError: if it is; the message names each failed check, and the two ways out.
    """
    if not verdict["valid"]:
        failed = [f"{c['name']} ({c['message']})" for c in verdict["checks"] if not c["passed"]]
        raise ValueError(
            f"{verdict['model']} is invalid: {'; '.join(failed)}. "
            "Run again to build what is damaged, or leave the model out: --config models=…"
        )


def _receipts(
    pairs: list[receipts.Pair], ids: list[str]
) -> tuple[list[str], list[receipts.Receipt]]:
    """Check every pair against its receipt; return the faults, and the sound receipts."""
    faults, sound = [], []
    for path, receipt, expected in pairs:
        digests = [ids[sequence] for sequence in expected.sequences if sequence < len(ids)]
        complete = dataclasses.replace(expected, ids_sha256=digests)
        if fault := receipts.fault(path, receipt, complete):
            faults.append(f"{path.name}: {fault}")
        else:
            sound.append(receipts.read(receipt))
    return faults, sound


def _provenance(sound: list[receipts.Receipt]) -> Iterator[str]:
    sets = {(tuple(sorted(r.versions.items())), r.dtype, r.checkpoint) for r in sound}
    if len(sets) > 1:
        yield f"the batches were made with {len(sets)} sets of versions, dtype and checkpoint"


def _repeats(ids: list[str]) -> list[str]:
    return [f"sequence {i} repeats another" for i, digest in enumerate(ids) if digest in ids[:i]]


def _contract(data: xr.Dataset, expectation: Expectation) -> Iterator[str]:
    for name, variable in VARIABLES.items():
        if name not in data:
            yield f"{name} is missing"
        elif data[name].dims != variable.dims or str(data[name].dtype) != variable.dtype:
            yield f"{name} is {data[name].dtype} {data[name].dims}"
    if list(data.sequence.values) != list(range(expectation.sequences)):
        yield f"sequences {list(data.sequence.values)}, expected {expectation.sequences}"
    if list(data.alpha.values) != [float(alpha) for alpha in expectation.alphas]:
        yield f"alphas {list(data.alpha.values)}"
    if data.sizes.get("position") != expectation.tokens:
        yield f"{data.sizes.get('position')} positions, expected {expectation.tokens}"


def _table(data: xr.Dataset, row: dict[str, Any]) -> Iterator[str]:
    sizes = {"layers": "block", "width": "feature", "experts": "expert", "top_k": "pick"}
    for column, axis in sizes.items():
        if data.sizes.get(axis, 0) != row[column]:
            told = f"{column} {row[column]}, the checkpoint has {data.sizes.get(axis, 0)}"
            yield f"the table of models says {told}"


def _finite(data: xr.Dataset) -> Iterator[str]:
    for name, variable in VARIABLES.items():
        if variable.dtype.startswith("float") and not np.isfinite(data[name].values).all():
            yield f"{name} holds NaN or infinity"


def _alive(data: xr.Dataset) -> Iterator[str]:
    dead = (data.power_sum.sel(power=2) <= 0).any("sequence")
    yield from (f"site {site}: all activations are zero" for site in np.flatnonzero(dead))


def _monotone(data: xr.Dataset) -> Iterator[str]:
    for name in ("x_count", "z_count"):
        counts = data[name].values
        if (counts[:, :, 1:] > counts[:, :, :-1]).any():
            yield f"{name} grows with alpha"
        if (counts > data.positions.values[:, None, None, None]).any():
            yield f"{name} exceeds the number of positions"


def _bounded(data: xr.Dataset) -> Iterator[str]:
    limit = np.sqrt(data.sizes["feature"]) * (1 + 1e-5)
    if (data.z_max > limit).any():
        yield f"z_max {float(data.z_max.max()):.3f} exceeds sqrt(width) {limit:.3f}"


def _extremes(data: xr.Dataset) -> Iterator[str]:
    high = np.maximum(data.x_max.max("token_type"), data.x_first)
    low = np.minimum(data.x_min.min("token_type"), data.x_first)
    largest = np.maximum(high, -low)
    for name, peak in (("x_count", largest), ("z_count", data.z_max)):
        for alpha in data.alpha.values:
            if ((data[name].sel(alpha=alpha) > 0) != (peak >= alpha)).any():
                yield f"{name} at {alpha:g} contradicts the extremes"
    six = data.x_count.sel(alpha=6).astype("int32")
    if ((data.x_positive > 0) != (high >= 6)).any() or (
        (six > data.x_positive) != (low <= -6)
    ).any():
        yield "x_positive contradicts the extremes"
    if (data.x_delimiter > np.minimum(six, data.delimiters)).any():
        yield "x_delimiter exceeds its bounds"
    if (data.position_max.max("position") != largest.max("feature")).any():
        yield "position_max contradicts the extremes"


def _unions(data: xr.Dataset) -> Iterator[str]:
    if data.attrs["norm_dtype"] != "bfloat16":
        return  # rounding to bfloat16 then moves values over the threshold
    six = data.x_count.sel(alpha=6).astype("int64")
    for kind in (*statistics_file.KINDS, "all"):
        sites = slice(None) if kind == "all" else np.flatnonzero(data.site_kind.values == kind)
        union, counts = data.union_count.sel(union=kind), six.isel(site=sites)
        if ((union < counts.max("site")) | (union > counts.sum("site"))).any():
            yield f"union_count of {kind} is not within its bounds"
    if (data.union_count > data.positions).any():
        yield "union_count exceeds the number of positions"


def _moments(data: xr.Dataset) -> Iterator[str]:
    count = data.positions * data.sizes["feature"]
    second, fourth = (data.power_sum.sel(power=p) / count for p in (2, 4))
    if (fourth < second**2 * (1 - 1e-9)).any():
        yield "power_sum: the fourth moment is below the square of the second"
    if (data.token_kurtosis < 1 - 1e-9).any():
        yield "token_kurtosis is below 1"
    if (data.int8_error < 0).any() or (data.token_nll < 0).any():
        yield "int8_error or token_nll is negative"


def _residual(data: xr.Dataset) -> Iterator[str]:
    top = np.abs(data.residual_top.values)
    if (top[..., 0] != data.residual_max.values).any() or (np.diff(top, axis=-1) > 0).any():
        yield "residual_top does not begin with residual_max, or does not fall"
    if (data.residual_median > data.residual_max).any():
        yield "residual_median exceeds residual_max"


def _routing(data: xr.Dataset) -> Iterator[str]:
    experts, route = data.sizes["expert"], data.route.values
    if (np.sort(route, axis=-1)[..., 1:] == np.sort(route, axis=-1)[..., :-1]).any():
        yield "route names an expert twice at one position"
    if route.size and route.max() >= experts:
        yield "route names an expert that is not there"
        return
    picked = np.zeros((*route.shape[:2], experts), dtype=bool)
    s, b = np.ogrid[: route.shape[0], : route.shape[1]]
    picked[s[..., None, None], b[..., None, None], route] = True
    if (picked != (data.expert_max_feature.values >= 0)).any():
        yield "expert_max contradicts route"
    entropy = data.router_entropy
    if (entropy < 0).any() or (entropy > np.log(experts) * (1 + 1e-4)).any():
        yield "router_entropy is not between 0 and the logarithm of the number of experts"


CHECKS: dict[str, Callable[[xr.Dataset], Iterator[str]]] = {
    "finite": _finite,
    "alive": _alive,
    "monotone": _monotone,
    "bounded": _bounded,
    "extremes": _extremes,
    "unions": _unions,
    "moments": _moments,
    "residual": _residual,
    "routing": _routing,
}
