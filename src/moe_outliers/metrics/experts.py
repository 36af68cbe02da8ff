"""Which experts write the outliers (M17), and the table of all experts."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from moe_outliers.stats import Array

SUPER_PERCENTILE = 99.5
SUPER_RATIO = 10.0
SUPER_DEPTH = 0.75


def super_experts(raw_max: Array, moe_block: Array, blocks: int) -> Array:
    """Find super experts: the few whose output is far larger than that of all others.

    Args:
        raw_max: (moe_block, expert), largest abs of an expert's output before the routing weight.
        moe_block: (moe_block,), number of each block.
        blocks: blocks of the model.

    Returns:
        (moe_block, expert), bool: above the 99.5th percentile over all experts, above a tenth of
        the largest, and in the first three quarters of the blocks.

    Source: Su et al. 2025 (arXiv:2507.23279), section 3.
    """
    if not raw_max.size:
        return np.zeros(raw_max.shape, dtype=bool)
    large = raw_max > np.percentile(raw_max, SUPER_PERCENTILE)
    return (
        large
        & (raw_max > raw_max.max() / SUPER_RATIO)
        & (moe_block < SUPER_DEPTH * blocks)[:, None]
    )


@dataclass(frozen=True)
class Attribution:
    """The largest output of each expert; all axes are (moe_block, expert).

    Attributes:
        largest: weighted output of largest abs over all sequences, signed; 0 if never picked.
        feature: its feature; -1 if never picked.
        sequence: place of its sequence.
        position: its position; -1 if never picked.
        mean: mean over sequences of the largest abs.
        raw_max: largest abs before the routing weight.
        is_super: super expert.
        super_sequence_share: share of the sequences in which it is one by itself.
        jump_share: median over sequences of expert_max / expert_total where the expert's largest
            output is at the feature and position of the block's largest abs(h); NaN if it never is.
        jump_sequences: sequences in which it is.
    """

    largest: Array
    feature: Array
    sequence: Array
    position: Array
    mean: Array
    raw_max: Array
    is_super: Array
    super_sequence_share: Array
    jump_share: Array
    jump_sequences: Array

    @classmethod
    def of(cls, statistics: xr.Dataset) -> "Attribution":
        """Compute it from the expert_* and residual_top_* variables of a model."""
        written = statistics["expert_max"].values.astype(float)
        raw = statistics["expert_raw_max"].values.astype(float)
        block, blocks = statistics["moe_block"].values, statistics.sizes["block"]
        sequence = np.abs(written).argmax(axis=0)

        def at_largest(name: str) -> Array:
            values = np.take_along_axis(statistics[name].values, sequence[None], axis=0)
            return values[0]

        each = np.stack([super_experts(one, block, blocks) for one in raw])
        share, number = _jump(statistics, written)
        return cls(
            largest=at_largest("expert_max"),
            feature=at_largest("expert_max_feature"),
            sequence=sequence,
            position=at_largest("expert_max_position"),
            mean=np.abs(written).mean(axis=0),
            raw_max=raw.max(axis=0),
            is_super=super_experts(raw.max(axis=0), block, blocks),
            super_sequence_share=each.mean(axis=0),
            jump_share=share,
            jump_sequences=number,
        )


def _jump(statistics: xr.Dataset, written: Array) -> tuple[Array, Array]:
    """Share of the MLP's output at the block's largest abs(h), and in how many sequences."""
    block = statistics["moe_block"].values
    top = {
        name: statistics[f"residual_top_{name}"].values[:, block, 0].astype(int)[..., None]
        for name in ("feature", "position")
    }
    there = np.logical_and.reduce(
        [statistics[f"expert_max_{name}"].values == top[name] for name in top]
    )
    total = statistics["expert_total"].values.astype(float)
    there &= total != 0
    share = np.where(there, written / np.where(there, total, 1), np.nan)
    number = there.sum(axis=0)
    result = np.full(number.shape, np.nan)
    for place in zip(*np.nonzero(number), strict=True):
        result[place] = np.nanmedian(share[(slice(None), *place)])
    return result, number
