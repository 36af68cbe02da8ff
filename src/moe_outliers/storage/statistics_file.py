"""The statistics file: its variables, writing and reading.

One netCDF-4 file holds the statistics of one batch of sequences of one model. VARIABLES defines it:
the extraction fills them in, `verify` checks them, and docs/statistics-file.md lists them.
"""

import hashlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from moe_outliers.storage import files
from moe_outliers.versions import STATISTICS_FORMAT

KINDS = ("attn_in", "mlp_in")
UNIONS = (*KINDS, "all")
SCHEMES = ("tensor", "token", "zeropoint", "mixed")
TOKEN_TYPES = ("delimiter", "other")
POWERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Variable:
    """One variable of the statistics file.

    Attributes:
        dims: names of its axes, in order.
        dtype: NumPy name of its type in the file.
        meaning: one line, with its unit.
    """

    dims: tuple[str, ...]
    dtype: str
    meaning: str


def _variable(dims: str, dtype: str, meaning: str) -> Variable:
    return Variable(tuple(dims.split()), dtype, meaning)


_COUNT = "sequence site alpha feature"
_SITE_FEATURE = "sequence site feature"
_EXTREME = "sequence site token_type feature"
_BLOCK = "sequence block"
_MOE = "sequence moe_block"
_EXPERT = "sequence moe_block expert"

VARIABLES: dict[str, Variable] = {
    "x_count": _variable(_COUNT, "uint16", "positions with abs(x) >= alpha"),
    "z_count": _variable(_COUNT, "uint16", "positions with abs(z) >= alpha"),
    "x_min": _variable(
        _EXTREME, "float32", "smallest x over positions >= 1 of that type, 0 where there are none"
    ),
    "x_max": _variable(
        _EXTREME, "float32", "largest x over positions >= 1 of that type, 0 where there are none"
    ),
    "x_first": _variable(_SITE_FEATURE, "float32", "x at position 0"),
    "z_max": _variable(_SITE_FEATURE, "float32", "largest abs(z) over all positions"),
    "x_positive": _variable(_SITE_FEATURE, "uint16", "positions with x >= 6"),
    "x_delimiter": _variable(_SITE_FEATURE, "uint16", "delimiter positions with abs(x) >= 6"),
    "union_count": _variable(
        "sequence union feature",
        "uint16",
        "positions where abs(x rounded to bfloat16) >= 6 at some site of that kind: "
        "for the legacy numbers only",
    ),
    "gain": _variable(
        "site feature", "float32", "the norm's effective gain: its weight, or 1 + its weight"
    ),
    "offset": _variable("site feature", "float32", "the norm's bias; 0 for RMSNorm"),
    "power_sum": _variable(
        "sequence site power", "float64", "sums of x^power over positions and features"
    ),
    "token_kurtosis": _variable(
        "sequence site",
        "float64",
        "mean over positions of the kurtosis over features: biased, about the mean, not excess",
    ),
    "int8_error": _variable(
        "sequence site scheme", "float32", "sum (x - int8 x)^2 / sum x^2, rounding half to even"
    ),
    "position_max": _variable("sequence site position", "float32", "largest abs(x) over features"),
    "position_feature": _variable(
        "sequence site position", "uint16", "the feature of position_max; the lowest on ties"
    ),
    "residual_max": _variable(_BLOCK, "float32", "largest abs(h) of the block's output"),
    "residual_median": _variable(
        _BLOCK, "float32", "lower median over positions of the position's lower median of abs(h)"
    ),
    "residual_massive": _variable(
        _BLOCK,
        "uint16",
        "positions with some abs(h) over 100 and over 1,000 times the position's median",
    ),
    "residual_top": _variable(
        _BLOCK + " rank", "float32", "h of the 8 features with the largest max abs(h), signed"
    ),
    "residual_top_feature": _variable(_BLOCK + " rank", "uint16", "the feature of residual_top"),
    "residual_top_position": _variable(_BLOCK + " rank", "uint16", "the position of residual_top"),
    "route": _variable(
        _MOE + " position pick",
        "uint16",
        "picked experts by falling routing weight; lowest on ties",
    ),
    "router_entropy": _variable(
        _MOE, "float32", "mean over positions of the routing distribution's entropy, nats"
    ),
    "router_margin": _variable(
        _MOE,
        "float32",
        "mean of s_k - s_(k+1), s being what the router sorts: attribute router_scores",
    ),
    "expert_max": _variable(
        _EXPERT, "float32", "signed weighted output of largest abs; 0 for an unpicked expert"
    ),
    "expert_max_feature": _variable(_EXPERT, "int32", "its feature; -1 for an unpicked expert"),
    "expert_max_position": _variable(_EXPERT, "int32", "its position; -1 for an unpicked expert"),
    "expert_total": _variable(
        _EXPERT,
        "float32",
        "the whole MLP's output, shared expert included, at that feature and position",
    ),
    "expert_raw_max": _variable(
        _EXPERT, "float32", "largest abs of the expert's output before the routing weight"
    ),
    "positions": _variable("sequence", "int32", "positions of the sequence"),
    "delimiters": _variable("sequence", "int32", "delimiter positions of the sequence"),
    "token_nll": _variable(
        "sequence target", "float32", "negative log-likelihood of each next token, nats"
    ),
}

ATTRIBUTES = (
    "format", "model", "repo", "revision", "family", "engine", "weights_dtype", "norm_dtype",
    "attention", "linear_attention", "experts", "router_scores", "micro_batch", "torch",
    "transformers", "cuda", "device", "ids_sha256",
)  # fmt: skip
"""Global attributes; none is a time stamp: equal inputs give equal bytes on one machine."""

IDS = "ids_sha256"
"""The digest of the token ids: in memory one a sequence, as a coordinate; in a file the attribute
is the digest of those of all its sequences."""


def coordinates(
    *,
    sequences: Sequence[int],
    alphas: Sequence[float],
    sites: Sequence[tuple[int, str, str]],
    moe_blocks: Sequence[int],
) -> dict[str, Any]:
    """Make the coordinates of a statistics file.

    Args:
        sequences: global indices of the sequences.
        alphas: thresholds, ascending.
        sites: block, kind and mixer of each site, in order of the forward pass.
        moe_blocks: numbers of the blocks that have a router.
    """
    blocks, kinds, mixers = zip(*sites, strict=True)
    return {
        "sequence": np.array(sequences, dtype="int32"),
        "alpha": np.array(alphas, dtype="float64"),
        "site_block": ("site", np.array(blocks, dtype="int32")),
        "site_kind": ("site", list(kinds)),
        "site_mixer": ("site", list(mixers)),
        "moe_block": np.array(moe_blocks, dtype="int32"),
        "power": np.array(POWERS, dtype="int32"),
        "union": list(UNIONS),
        "scheme": list(SCHEMES),
        "token_type": list(TOKEN_TYPES),
    }


def assemble(
    variables: Mapping[str, np.ndarray[Any, Any]],
    coordinates: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Make a dataset of the variables of a batch, each with its axes and type.

    Raises:
        ValueError: if a variable is missing or unknown, or a count does not fit its type.
    """
    if set(variables) != set(VARIABLES) or set(attributes) != set(ATTRIBUTES):
        wrong = set(variables) ^ set(VARIABLES) | set(attributes) ^ set(ATTRIBUTES)
        raise ValueError(f"statistics file: missing or unknown: {', '.join(sorted(wrong))}")
    data = {}
    for name, variable in VARIABLES.items():
        values = np.asarray(variables[name])
        typed = values.astype(variable.dtype)
        if np.issubdtype(typed.dtype, np.integer) and not np.array_equal(typed, values):
            raise ValueError(
                f"statistics file: {name} holds values that do not fit {variable.dtype}"
            )
        data[name] = xr.Variable(variable.dims, typed, {"meaning": variable.meaning})
    return xr.Dataset(data, coordinates, attributes)


def with_ids(dataset: xr.Dataset, ids_sha256: Sequence[str]) -> xr.Dataset:
    """Return a dataset with the digest of each sequence's token ids, and the digest of them all."""
    named = dataset.assign_coords({IDS: ("sequence", list(ids_sha256))})
    together = hashlib.sha256("".join(ids_sha256).encode()).hexdigest()
    return named.assign_attrs({IDS: together})


def write(dataset: xr.Dataset, path: str | Path, sequences: Sequence[int] | None = None) -> None:
    """Write a statistics file atomically: compressed, every chunk with a checksum.

    Args:
        dataset: as `assemble` returns it, or `mo.record`: digests of single sequences are left out.
        path: the file.
        sequences: the global indices of those to write, in order, for a file as of a batch of
            these alone; None for all.

    Raises:
        ValueError: if the dataset lacks one of the sequences, or the digests of its token ids.
    """
    if sequences is not None:
        dataset = _of_sequences(dataset, sequences)
    dataset = dataset.drop_vars(IDS, errors="ignore")
    stored = {"zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True, "_FillValue": None}
    encoding = {name: stored for name in dataset.data_vars if dataset[name].size}
    with files.replacing(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf", encoding=encoding)


def _of_sequences(dataset: xr.Dataset, sequences: Sequence[int]) -> xr.Dataset:
    known = dataset["sequence"].values.tolist()
    if lacking := sorted(set(sequences) - set(known)):
        raise ValueError(f"statistics: no sequences {lacking}; there are {known}")
    if IDS not in dataset.coords:
        raise ValueError(f"statistics: no coordinate {IDS}: take the dataset that mo.record gives")
    part = dataset.isel(sequence=[known.index(sequence) for sequence in sequences])
    return with_ids(part, part[IDS].values.tolist())


def read(path: str | Path, variables: Collection[str] | None = None) -> xr.Dataset:
    """Read a statistics file; its receipt must have been checked before.

    Args:
        path: the file.
        variables: the variables to read; None for all.

    Raises:
        ValueError: if it is no statistics file, is damaged, or has a format newer than this program
            knows.
    """
    lazily: Any = {"mask_and_scale": False, "decode_times": False, "cache": False}
    with (
        _failing(path),
        warnings.catch_warnings(action="ignore"),
        xr.open_dataset(path, engine="h5netcdf", **lazily) as file,
    ):
        unwanted = [] if variables is None else [n for n in file.data_vars if n not in variables]
        dataset = file.drop_vars(unwanted).load()
    version = dataset.attrs.get("format")
    if not isinstance(version, int | np.integer) or version > STATISTICS_FORMAT:
        raise ValueError(
            f"{path}: format {version}, this program knows up to {STATISTICS_FORMAT}: update it"
        )
    return dataset


def read_all(
    paths: Sequence[str | Path],
    variables: Collection[str] | None = None,
    order: Sequence[int] | None = None,
) -> xr.Dataset:
    """Read the batches of one model as one dataset, without a second copy in memory.

    Args:
        paths: the files, in any order.
        variables: the variables to read; None for all. What the first file lacks is left out.
        order: global indices of the sequences, in the order wanted; None for ascending.

    Raises:
        ValueError: as for `read`, or if the files do not fit together.
    """
    first = read(paths[0], variables)
    with ExitStack() as stack:
        stack.enter_context(_failing(f"{paths[0]} and its siblings"))
        batches = [stack.enter_context(h5py.File(path)) for path in paths]
        held = [batch["sequence"][...].tolist() for batch in batches]
        sequences = sorted(sequence for part in held for sequence in part)
        wanted = sequences if order is None else list(order)
        if sequences != sorted(set(wanted)):
            raise ValueError(f"they hold the sequences {sequences}, not {wanted}")
        rows = [[wanted.index(sequence) for sequence in part] for part in held]
        merged = {
            name: _merge(str(name), variable, batches, rows)
            for name, variable in first.variables.items()
        }
    return xr.Dataset(merged, attrs=first.attrs).set_coords(list(first.coords))


def _merge(
    name: str, variable: xr.Variable, batches: list[h5py.File], rows: list[list[int]]
) -> xr.Variable:
    """Merge a variable of all batches by sequence; one without that axis must be equal in all."""
    if "sequence" not in variable.dims:
        if any(not np.array_equal(batch[name], batches[0][name]) for batch in batches):
            raise ValueError(f"{name} is not the same in all")
        return variable
    whole = np.empty((sum(map(len, rows)), *variable.shape[1:]), variable.dtype)
    for place, batch in zip(rows, batches, strict=True):
        values = batch[name][...]
        if values.shape != (len(place), *whole.shape[1:]):
            raise ValueError(f"{name} has shape {values.shape}, {whole.shape[1:]} is expected")
        whole[place] = values
    return xr.Variable(variable.dims, whole, variable.attrs)


@contextmanager
def _failing(name: str | Path) -> Iterator[None]:
    """Turn the errors of libraries on a damaged file into a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: no statistics file: {error}") from error
