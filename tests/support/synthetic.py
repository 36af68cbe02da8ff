"""Statistics files with planted truth: whole contract, no model.

`reduce` turns activations into statistics by NumPy alone, `planted` makes such activations, and
`of_shape` draws the statistics of a model at its true shape directly, since its activations would
be hundreds of gigabytes.
"""

import hashlib
import itertools
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from moe_outliers import tokenization
from moe_outliers.storage import statistics_file
from moe_outliers.versions import STATISTICS_FORMAT

ALPHAS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)
KINDS = statistics_file.KINDS


@dataclass(frozen=True)
class Plant:
    """One planted feature.

    Attributes:
        feature: its number.
        where: `all` sites, a `band` (the same run of sites in every sequence), `random` sites anew
            in every sequence, `attn_in` (all sites of that kind), `trend` (a mild fall over depth).
        extent: share of the sites, for `band` and `random`; mean chance for `trend`.
        size: abs(z) where it fires.
        coverage: share of the positions of a firing site.
    """

    feature: int
    where: str = "all"
    extent: float = 1.0
    size: float = 12.0
    coverage: float = 0.5


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its sweep."""

    sequences: int = 16
    blocks: int = 12
    width: int = 96
    positions: int = 128
    experts: int = 8
    picks: int = 2
    dense: int = 0  # blocks at the bottom without experts
    linear: bool = False  # linear attention in three of four blocks
    alphas: tuple[float, ...] = field(default=ALPHAS)

    @property
    def sites(self) -> int:
        return 2 * self.blocks


def sites_where(plant: Plant, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Say where a plant fires: (sequence, site), bool."""
    s, p = shape.sequences, shape.sites
    if plant.where == "all":
        return np.ones((s, p), dtype=bool)
    if plant.where == "attn_in":
        return np.tile([True, False], (s, shape.blocks))
    if plant.where == "band":
        size = round(plant.extent * p)
        start = (p - size) // 3
        return np.tile((np.arange(p) >= start) & (np.arange(p) < start + size), (s, 1))
    if plant.where == "trend":
        chance = plant.extent + np.linspace(0.1, -0.1, p)
        return rng.random((s, p)) < chance
    return rng.random((s, p)) < plant.extent


def planted(
    plants: list[Plant],
    shape: Shape = Shape(),
    *,
    gain: float | dict[int, float] = 1.0,
    seed: int = 0,
    sequences: list[int] | None = None,
):
    """Make the statistics and tokens of a model of Gaussian activations with planted outliers.

    Args:
        plants: what is planted.
        shape: sizes.
        gain: of every feature, or of some by number, 1 for the rest.
        seed: of all draws.
        sequences: global indices; default 0, 1 and so on.

    Returns:
        The dataset and the tokens table.
    """
    rng = np.random.default_rng(seed)
    s, p, t, d = shape.sequences, shape.sites, shape.positions, shape.width
    gains = np.full((p, d), 1 if isinstance(gain, dict) else gain, dtype=np.float32)
    for feature, value in gain.items() if isinstance(gain, dict) else ():
        gains[:, feature] = value
    if too_large := [plant for plant in plants if plant.size**2 >= d]:
        raise ValueError(f"abs(z) is below sqrt(width): {too_large}")
    fires = {plant: sites_where(plant, shape, rng) for plant in plants}
    z = np.empty((s, p, t, d), dtype=np.float32)
    for sequence, site in np.ndindex(s, p):
        h = rng.standard_normal((t, d))
        for plant in plants:
            if fires[plant][sequence, site]:
                there = rng.permutation(t)[: round(plant.coverage * t)]
                # the root mean square grows with what is planted: size is what z comes to
                h[there, plant.feature] = 0
                others = (h[there] ** 2).sum(axis=1)
                h[there, plant.feature] = plant.size * np.sqrt(others / (d - plant.size**2))
        z[sequence, site] = h / np.sqrt((h**2).mean(axis=1, keepdims=True))
    x = z * gains[:, None, :]
    tokens = tokens_of(shape, seed, sequences)
    return reduce(x, z, gains, tokens, shape, seed=seed), tokens


def tokens_of(shape: Shape, seed: int = 0, sequences: list[int] | None = None) -> pa.Table:
    """Make a tokens file: random ids, some delimiters, tokens of one to seven bytes."""
    rows = []
    for sequence in sequences or range(shape.sequences):
        rng = np.random.default_rng([seed, 17, sequence])
        ids = rng.integers(0, 1000, shape.positions).tolist()
        delimiter = rng.random(shape.positions) < 0.06
        delimiter[0] = False
        text = hashlib.sha256(str(sequence).encode()).hexdigest()
        ends = np.cumsum(rng.integers(1, 8, shape.positions))
        rows.append(
            {
                "sequence": sequence,
                "ids": ids,
                "ends": ends.tolist(),
                "delimiter": delimiter.tolist(),
                "document": f"document {sequence}",
                "text_bytes": int(ends[-1]) + 100,
                "text_sha256": text,
                "ids_sha256": tokenization.ids_sha256(ids),
            }
        )
    return pa.Table.from_pylist(rows, schema=tokenization.SCHEMA)


def reduce(x, z, gain, tokens, shape: Shape, *, seed: int = 0):
    """Reduce activations to the statistics of the whole contract.

    Args:
        x: (sequence, site, position, feature), float32.
        z: the same before the gain.
        gain: (site, feature).
        tokens: the tokens table.
        shape: sizes.
        seed: of what has nothing to do with x: residual stream, routers, losses.
    """
    delimiter = np.array(tokens["delimiter"].to_pylist())
    other = ~delimiter
    other[:, 0] = False
    size = np.abs(x)
    variables = _elsewhere(shape, np.random.default_rng([seed, 3])) | {
        "x_count": np.stack([(size >= a).sum(axis=2) for a in shape.alphas], axis=2),
        "z_count": np.stack([(np.abs(z) >= a).sum(axis=2) for a in shape.alphas], axis=2),
        "x_min": np.stack([-_peak(-x, mask) for mask in (delimiter, other)], axis=2),
        "x_max": np.stack([_peak(x, mask) for mask in (delimiter, other)], axis=2),
        "x_first": x[:, :, 0],
        "z_max": np.abs(z).max(axis=2),
        "x_positive": (x >= 6).sum(axis=2),
        "x_delimiter": ((size >= 6) & delimiter[:, None, :, None]).sum(axis=2),
        "union_count": _unions(size),
        "gain": gain,
        "offset": np.zeros_like(gain),
        "power_sum": np.stack(
            [(x.astype(float) ** p).sum(axis=(2, 3)) for p in (1, 2, 3, 4)], axis=2
        ),
        "token_kurtosis": _kurtosis(x.astype(float)),
        "position_max": size.max(axis=3),
        "position_feature": size.argmax(axis=3),
        "delimiters": delimiter.sum(axis=1),
    }
    return assemble(variables, tokens["sequence"].to_pylist(), shape)


def _peak(x, mask):
    return np.where(mask[:, None, :, None], x, -np.inf).max(axis=2)


def _unions(size):
    large = size >= 5.984375
    kinds = (large[:, 0::2], large[:, 1::2], large)
    return np.stack([part.any(axis=1).sum(axis=1) for part in kinds], axis=1)


def _kurtosis(x):
    centred = x - x.mean(axis=3, keepdims=True)
    second, fourth = ((centred**p).mean(axis=3) for p in (2, 4))
    return (fourth / second**2).mean(axis=2)


def _elsewhere(shape: Shape, rng: np.random.Generator) -> dict:
    """Draw the variables of residual stream, routers, experts and losses."""
    s, b, t, e = shape.sequences, shape.blocks, shape.positions, shape.experts
    moe = b - shape.dense
    top = -np.sort(-rng.gamma(2, 20, (s, b, 8)), axis=2)
    route = np.argsort(rng.random((s, moe, t, e)), axis=3)[..., : shape.picks]
    written = rng.normal(0, 2, (s, moe, e))
    return {
        "int8_error": 10 ** -rng.uniform(2, 4, (s, shape.sites, 4)),
        "residual_max": top[:, :, 0],
        "residual_median": rng.uniform(0.1, 0.5, (s, b)),
        "residual_massive": rng.integers(0, 2, (s, b)),
        "residual_top": top,
        "residual_top_feature": np.argsort(rng.random((s, b, shape.width)), axis=2)[..., :8],
        "residual_top_position": rng.integers(0, t, (s, b, 8)),
        "route": route,
        "router_entropy": rng.uniform(0.5, 0.9, (s, moe)) * np.log(max(e, 2)),
        "router_margin": rng.uniform(0.01, 0.1, (s, moe)),
        "expert_max": written,
        "expert_max_feature": rng.integers(0, shape.width, (s, moe, e)),
        "expert_max_position": rng.integers(0, t, (s, moe, e)),
        "expert_total": written * rng.uniform(1, 2, (s, moe, e)),
        "expert_raw_max": np.abs(written) * 3,
        "positions": np.full(s, t),
        "token_nll": rng.gamma(1, 2.5, (s, t - 1)),
    }


def assemble(variables: dict, sequences: list[int], shape: Shape):
    """Put variables into a dataset with coordinates and attributes."""
    every_fourth = [b % 4 == 3 or not shape.linear for b in range(shape.blocks)]
    token_mixer = ["attention" if full else "linear_attention" for full in every_fourth]
    sites = [
        (block, kind, token_mixer[block] if kind == "attn_in" else mixer)
        for block in range(shape.blocks)
        for kind, mixer in zip(KINDS, ("", "mlp" if block < shape.dense else "moe"), strict=True)
    ]
    coordinates = statistics_file.coordinates(
        sequences=sequences,
        alphas=shape.alphas,
        sites=sites,
        moe_blocks=range(shape.dense, shape.blocks),
    )
    attributes = dict.fromkeys(statistics_file.ATTRIBUTES, "synthetic") | {
        "format": STATISTICS_FORMAT,
        "engine": 1,
        "micro_batch": 1,
        "norm_dtype": "float32",
    }
    return statistics_file.assemble(variables, coordinates, attributes)


def of_shape(shape: Shape, plants: list[Plant], *, gain: float = 1.0, seed: int = 0):
    """Draw the statistics of one model at any shape, sequence by sequence.

    Gaussian features have the counts of one draw, moved by some features in each sequence.

    Returns:
        A generator of datasets of one sequence each, and the tokens table.
    """
    rng = np.random.default_rng(seed)
    tokens = tokens_of(shape, seed)
    one = Shape(**(vars(shape) | {"sequences": 1}))
    fires = {plant: sites_where(plant, shape, rng) for plant in plants}
    noise = _noise(shape, gain, rng)

    def datasets():
        for sequence in range(shape.sequences):
            variables = {n: np.roll(v, 37 * sequence, axis=-1) for n, v in noise.items()}
            for plant in plants:
                _plant(variables, plant, fires[plant][sequence], shape, gain)
            variables = {name: values[None] for name, values in variables.items()}
            variables |= _elsewhere(one, np.random.default_rng([seed, sequence]))
            large = variables["x_count"][0][:, shape.alphas.index(6.0)]
            variables |= _bounds(large, tokens, sequence, shape, gain)
            yield assemble(variables, [sequence], one)

    return datasets(), tokens


def _noise(shape: Shape, gain: float, rng: np.random.Generator) -> dict:
    """Draw counts and extremes of Gaussian features: (site, …, feature)."""
    from scipy import stats

    p, d, t = shape.sites, shape.width, shape.positions
    counts = {}
    for name, scale in (("x_count", gain), ("z_count", 1.0)):
        chance = 2 * stats.norm.sf(np.array(shape.alphas) / scale)
        left = rng.binomial(t, chance[0], (p, d))
        levels = [left]
        for before, now in itertools.pairwise(chance):
            left = rng.binomial(left, now / before)
            levels.append(left)
        counts[name] = np.stack(levels, axis=1).astype(np.uint16)
    peak = np.abs(rng.normal(3.5, 0.3, (p, d))).astype(np.float32)
    return counts | {
        "x_max": np.stack([peak * 0.7, peak], axis=1) * np.float32(gain),
        "x_min": -np.stack([peak * 0.7, peak], axis=1) * np.float32(gain),
        "x_first": (rng.standard_normal((p, d)) * gain).astype(np.float32),
        "z_max": peak,
        "x_positive": counts["x_count"][:, shape.alphas.index(6.0)] // 2,
        "x_delimiter": counts["x_count"][:, shape.alphas.index(6.0)] // 16,
    }


def _plant(variables: dict, plant: Plant, sites, shape: Shape, gain: float) -> None:
    number = round(plant.coverage * shape.positions)
    for name, size in (("x_count", plant.size * gain), ("z_count", plant.size)):
        planted = np.where(np.array(shape.alphas) <= size, number, 0)
        variables[name][sites, :, plant.feature] = planted
    variables["x_max"][sites, 1, plant.feature] = plant.size * gain
    variables["z_max"][sites, plant.feature] = plant.size
    variables["x_positive"][sites, plant.feature] = number
    variables["x_delimiter"][sites, plant.feature] = number // 16


def _bounds(large, tokens, sequence: int, shape: Shape, gain: float) -> dict:
    """Variables that follow from the shape alone, roughly."""
    p, d, t = shape.sites, shape.width, shape.positions
    rng = np.random.default_rng([sequence, 5])
    union = [large[0::2].max(axis=0), large[1::2].max(axis=0), large.max(axis=0)]
    return {
        "union_count": np.stack(union)[None],
        "gain": np.full((p, d), gain, dtype=np.float32),
        "offset": np.zeros((p, d), dtype=np.float32),
        "power_sum": np.tile([0.0, t * d, 0.0, 30.0 * t * d], (1, p, 1)),
        "token_kurtosis": rng.uniform(3, 30, (1, p)),
        "position_max": rng.gamma(3, 2, (1, p, t)),
        "position_feature": rng.integers(0, d, (1, p, t)),
        "delimiters": np.array([sum(tokens["delimiter"][sequence].as_py())]),
    }
