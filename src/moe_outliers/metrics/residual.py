"""Massive activations of the residual stream, block by block (M10)."""

import numpy as np
import pyarrow as pa
import xarray as xr

from moe_outliers.stats import Array
from moe_outliers.storage import parquet

MASSIVE, MASSIVE_RATIO = 100.0, 1000.0
"""A massive activation is larger than the one, and than the other times the median."""

USUAL = 0.5
"""A block shows massive activations if at least this share of the sequences does there."""

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    block=(pa.int32(), "number of the decoder block, from 0"),
    token_mixer=(pa.string(), "what mixes positions: attention or linear_attention"),
    channel_mixer=(pa.string(), "what mixes features: mlp or moe"),
    top_feature=(
        pa.int32(),
        "feature that most often has the largest abs(h) of the block's output; the lowest on ties",
    ),
    top_feature_sequence_share=(pa.float64(), "share of the sequences in which it has"),
    top_first_share=(pa.float64(), "share of the sequences whose largest abs(h) is at position 0"),
    top_delimiter_share=(
        pa.float64(), "share of the sequences whose largest abs(h) is at a delimiter"
    ),
    massive_sequence_share=(
        pa.float64(), "share of the sequences with a massive activation (Sun et al. 2024)"
    ),
    massive_onset=(
        pa.bool_(), "the first block with massive activations in at least half of the sequences"
    ),
    residual_max_largest=(pa.float64(), "largest abs(h) of all sequences; a maximum: no interval"),
)  # fmt: skip
"""One row a block."""


def growth(residual_max: Array) -> Array:
    """How many times a block raises the largest abs(h) of its input.

    Args:
        residual_max: (sequence, block).

    Returns:
        (sequence, block), NaN in block 0, whose input is not recorded, and where it was zero.
    """
    before, after = residual_max[:, :-1].astype(float), residual_max[:, 1:]
    ratio = np.where(before > 0, after / np.where(before > 0, before, 1), np.nan)
    return np.concatenate([np.full((len(ratio), 1), np.nan), ratio], axis=1)


def massive_2024(residual_max: Array, residual_median: Array) -> Array:
    """Tell whether a block's output has a massive activation, (sequence, block), bool.

    Args:
        residual_max: (sequence, block), largest abs(h).
        residual_median: (sequence, block), median of abs(h) over all positions and features of that
            output: element (N - 1) // 2 of the sorted values.

    Source: Sun et al. 2024 (arXiv:2402.17762), section 2, and locuslab/massive-activations,
        main_llm.py: abs(h) > 100, and > 1,000 times the median of the whole output. The median of
        one position is another: that of a token with a massive activation is large itself.
    """
    return (residual_max > MASSIVE) & (
        residual_max.astype(float) > MASSIVE_RATIO * residual_median.astype(float)
    )


def forming(massive: Array) -> Array:
    """Tell at which blocks massive activations form, (block,), bool.

    Args:
        massive: (sequence, block), bool.

    Returns:
        Where at least half of the sequences have one, and behind the block before fewer than half.
    """
    often = massive.mean(axis=0) >= USUAL
    return often & ~np.concatenate([[False], often[:-1]])


def ratio(residual_max: Array, residual_median: Array) -> Array:
    """Largest abs(h) over the median of abs(h), (sequence, block); NaN for a median of zero.

    It has no free scale, as a threshold of 100 has.
    """
    median = residual_median.astype(float)
    return np.where(median > 0, residual_max / np.where(median > 0, median, 1), np.nan)


def blocks(statistics: xr.Dataset, delimiter: Array, model: str) -> pa.Table:
    """Describe every block, one row each, of SCHEMA.

    Args:
        statistics: of the model.
        delimiter: (sequence, position), bool, the delimiter positions.
        model: its slug.
    """
    feature = statistics["residual_top_feature"].values[:, :, 0]
    position = statistics["residual_top_position"].values[:, :, 0].astype(int)
    usual = np.array([np.bincount(column).argmax() for column in feature.T.astype(int)])
    largest = statistics["residual_max"].values
    massive = massive_2024(largest, statistics["residual_median"].values).mean(axis=0)
    often = massive >= USUAL
    onset = np.zeros(len(often), dtype=bool)
    onset[often.argmax()] = often.any()
    mixer = statistics["site_mixer"].values.astype(str)
    at_delimiter = np.take_along_axis(delimiter, position, axis=1)
    return parquet.table(
        SCHEMA,
        {
            "model": model,
            "block": np.arange(len(usual)),
            "token_mixer": mixer[0::2],
            "channel_mixer": mixer[1::2],
            "top_feature": usual,
            "top_feature_sequence_share": (feature == usual).mean(axis=0),
            "top_first_share": (position == 0).mean(axis=0),
            "top_delimiter_share": at_delimiter.mean(axis=0),
            "massive_sequence_share": massive,
            "massive_onset": onset,
            "residual_max_largest": largest.max(axis=0),
        },
    )
