"""Metrics by site and block: moments, 8-bit rounding, residual stream, routers."""

from typing import Any

import numpy as np
import pyarrow as pa

from moe_outliers.metrics import moments, residual, routing
from moe_outliers.metrics.experts import Attribution
from moe_outliers.metrics.magnitude import TYPES, Extremes
from moe_outliers.metrics.model_statistics import ModelStatistics
from moe_outliers.metrics.values import NOT_RECORDED, Values
from moe_outliers.stats import Array
from moe_outliers.stats.multiplicity import benjamini_hochberg
from moe_outliers.storage import parquet
from moe_outliers.storage.statistics_file import SCHEMES

EXPERTS = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    block=(pa.int32(), "number of the decoder block, from 0"),
    expert=(pa.int32(), "number of the expert"),
    load_share=(pa.float64(), "share of all picks of the block, mean over sequences"),
    load_ratio=(pa.float64(), "load_share times the number of experts: 1 for equal loads"),
    first_share=(pa.float64(), "share of the sequences whose position 0 picks the expert"),
    lift=(pa.float64(), "P(picked | outlier token) / P(picked), top 1 %, without position 0"),
    lift_p=(
        pa.float64(),
        "two-sided permutation test: picks at the outlier tokens in the own routes of each "
        "sequence, against those in the routes of other sequences",
    ),
    lift_q=(pa.float64(), "lift_p after Benjamini and Hochberg over all experts of the model"),
    lift_magnitude=(pa.float64(), "lift for tokens with abs(x) >= magnitude instead"),
    largest=(
        pa.float64(),
        "weighted output of largest abs over all sequences, signed; 0 if never picked",
    ),
    largest_feature=(pa.int32(), "its feature"),
    largest_sequence=(pa.int32(), "its sequence"),
    largest_position=(pa.int32(), "its position"),
    abs_max_mean=(pa.float64(), "mean over sequences of the largest abs of the weighted output"),
    raw_abs_max=(pa.float64(), "largest abs of the output before the routing weight"),
    super_expert=(
        pa.bool_(),
        "super expert by the rule of Su et al. 2025, among routed experts; docs/method.md",
    ),
    super_sequence_share=(pa.float64(), "share of the sequences in which it is one by itself"),
    writer=(
        pa.bool_(),
        "writes at least half of what the MLP adds at the largest abs(h), in half of the "
        "sequences, of the first block that raises the residual stream's maximum threefold",
    ),
    jump_share=(
        pa.float64(),
        "median share of the whole MLP's output that the expert writes at the feature and "
        "position of the block's largest abs(h); may exceed 1 where others cancel it",
    ),
    jump_sequences=(pa.int32(), "sequences in which its largest output is there"),
)
"""One row a block and expert."""


def add_sites(values: Values, model: ModelStatistics, extremes: Extremes) -> None:
    """Add moments, errors of 8-bit rounding, and magnitudes by type of position, for each site."""
    kind, mixer = model.counts.kind, model.counts.mixer
    sites = np.arange(len(kind))
    axis = {"site": sites, "block": sites // 2, "kind": kind, "mixer": mixer}
    by_type = extremes.by_type.max(axis=3)
    for name, table in zip(TYPES, by_type, strict=True):
        values.add("type_abs_max", table, axis, token_type=name)
    shapes = {
        "site_rms": moments.rms(model.statistics),
        "excess_kurtosis": moments.excess_kurtosis(model.statistics),
        "token_excess_kurtosis": moments.token_excess_kurtosis(model.statistics),
    }
    for metric, table in shapes.items():
        values.add(metric, table, axis)
        if metric != "site_rms":
            values.add(metric, _over_sites(np.nanmedian, table))
    if not model.has("int8_error"):
        values.lack(NOT_RECORDED, "int8_error", "int8_sqnr_db", "int8_gain_db")
        return
    error = model.statistics["int8_error"].values
    decibels = moments.sqnr_db(error)
    for place, scheme in enumerate(SCHEMES):
        values.add("int8_error", error[:, :, place], axis, scheme=scheme)
        values.add("int8_sqnr_db", decibels[:, :, place], axis, scheme=scheme)
        values.add("int8_sqnr_db", _over_sites(np.nanmean, decibels[:, :, place]), scheme=scheme)
    gained = decibels[:, :, SCHEMES.index("mixed")] - decibels[:, :, SCHEMES.index("token")]
    values.add("int8_gain_db", gained, axis)
    values.add("int8_gain_db", _over_sites(np.nanmean, gained))


def add_blocks(values: Values, model: ModelStatistics) -> pa.Table:
    """Add metrics of the residual stream for each block; return the table of blocks."""
    statistics = model.statistics
    axis = {"block": np.arange(statistics.sizes["block"])}
    largest, median = statistics["residual_max"].values, statistics["residual_median"].values
    values.add("residual_max", largest, axis)
    values.add("residual_median", median, axis)
    ratio = residual.ratio(largest, median)
    massive = residual.massive_2024(largest, median)
    values.add("massive_ratio", ratio, axis)
    values.add("massive_ratio", _over_sites(np.nanmax, ratio))
    values.add("massive_2024_share", massive, axis)
    values.add("massive_2024_share", np.asarray(massive.any(axis=1)))
    values.add("residual_growth", residual.growth(largest), axis)
    values.add("residual_max", largest.max(axis=1))
    delimiter = np.array(model.tokens["delimiter"].to_pylist())
    return residual.blocks(statistics, delimiter, model.slug)


ROUTER = (
    "load_entropy_share", "load_cv", "load_max_ratio", "dead_experts", "router_entropy",
    "router_entropy_share", "router_margin", "route_information", "outlier_token_share",
)  # fmt: skip
"""Metrics that `add_routers` adds."""


def add_routers(values: Values, model: ModelStatistics) -> pa.Table:
    """Add metrics of the routers for each block; return the table of experts, of EXPERTS."""
    needed = ("route", "position_max", "router_entropy", "router_margin", "expert_max")
    if not model.has(*needed, "expert_raw_max", "expert_total"):
        values.lack(NOT_RECORDED, *ROUTER)
        return EXPERTS.empty_table()
    statistics = model.statistics
    experts, block = routing.experts_of(statistics), statistics["moe_block"].values
    axis = {"block": block}
    load = routing.loads(statistics["route"].values, experts)
    feeding = statistics["position_max"].values[:, 2 * block + 1]
    entropy = statistics["router_entropy"].values.astype(float)
    whole = np.log(experts) if experts > 1 else np.nan
    tables = {
        "load_entropy_share": routing.load_entropy(load),
        "load_cv": load.std(axis=2) * experts,
        "load_max_ratio": load.max(axis=2) * experts,
        "dead_experts": (load == 0).sum(axis=2),
        "router_entropy": entropy,
        "router_entropy_share": np.minimum(entropy / whole, 1),
        "router_margin": statistics["router_margin"].values,
        "outlier_token_share": (feeding >= model.criteria.at("x")).mean(axis=2),
    }
    associations = _associations(model, feeding, experts)
    tables["route_information"] = np.stack([one.information for one in associations], axis=1)
    for metric, table in tables.items():
        values.add(metric, table, axis)
        values.add(metric, table.mean(axis=1))
    return _expert_table(model, load, associations, feeding)


def _associations(
    model: ModelStatistics, feeding: Array, experts: int
) -> list[routing.Association]:
    """Test in every block whether outlier tokens go to certain experts, with the same draws."""
    pairings = routing.permutations(len(model.sequences), model.rng("pairings"))
    route = model.statistics["route"].values
    return [
        routing.associate(route[:, block], feeding[:, block], experts, pairings)
        for block in range(route.shape[1])
    ]


def _expert_table(
    model: ModelStatistics, load: Array, associations: list[routing.Association], feeding: Array
) -> pa.Table:
    statistics, experts = model.statistics, load.shape[2]
    route, attribution = statistics["route"].values, Attribution.of(statistics)
    p, unpicked = np.stack([one.p for one in associations]), attribution.feature < 0
    magnitude = model.criteria.at("x")
    by_magnitude = [
        routing.magnitude_lift(route[:, block], feeding[:, block], experts, magnitude)
        for block in range(len(associations))
    ]
    columns = {
        "block": np.repeat(statistics["moe_block"].values, experts),
        "expert": np.tile(np.arange(experts), len(associations)),
        "load_share": load.mean(axis=0),
        "load_ratio": load.mean(axis=0) * experts,
        "first_share": routing.first_picks(route, experts),
        "lift": np.stack([one.lift for one in associations]),
        "lift_p": p,
        "lift_q": benjamini_hochberg(p.ravel()),
        "lift_magnitude": np.stack(by_magnitude),
        "largest": attribution.largest,
        "largest_feature": np.where(unpicked, np.nan, attribution.feature),
        "largest_sequence": np.where(unpicked, np.nan, model.sequences[attribution.sequence]),
        "largest_position": np.where(unpicked, np.nan, attribution.position),
        "abs_max_mean": attribution.mean,
        "raw_abs_max": attribution.raw_max,
        "super_expert": attribution.is_super,
        "super_sequence_share": attribution.super_sequence_share,
        "writer": attribution.is_writer,
        "jump_share": attribution.jump_share,
        "jump_sequences": attribution.jump_sequences,
    }
    flat = {name: np.ravel(column) for name, column in columns.items()}
    return parquet.table(EXPERTS, {"model": model.slug} | flat)


def _over_sites(average: Any, table: Array) -> Array:
    """Average over the sites that have a value: (sequence, site) to (sequence,)."""
    result = np.full(len(table), np.nan)
    there = ~np.isnan(table).all(axis=1)
    result[there] = average(table[there], axis=1)
    return result
