"""Which experts write the outliers (M17), and the table of all experts."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from moe_outliers.metrics import residual
from moe_outliers.stats import Array

SUPER_PERCENTILE = 99.5
SUPER_RATIO = 10
SUPER_DEPTH = 0.75

GROWTH = 3.0
"""How many times a block must raise the residual stream's maximum to have a writer."""

WRITTEN = 0.5
"""Share of the whole MLP's output that a writer writes, and of the sequences where it does."""


def super_experts(raw_max: Array, moe_block: Array, blocks: int, forming: Array) -> Array:
    """Find super experts: the few whose output is far larger than that of all others.

    Args:
        raw_max: (moe_block, expert), largest abs of an expert's output before the routing weight.
        moe_block: (moe_block,), number of each block.
        blocks: blocks of the model.
        forming: (block,), bool, where massive activations form.

    Returns:
        (moe_block, expert), bool. Of the first round(.75 blocks) blocks, and of these alone, above
        the 99.5th percentile over all experts and above a tenth of the largest, rounded down; and
        in a block where massive activations form. Percentile and tenth are those of routed experts:
        of shared experts, which the published code has in its pool, the largest is not recorded.

    Source: Su et al. 2025 (arXiv:2507.23279), section 3; ZunhaiSu/Super-Experts-Profilling at
        573aead, eval_utils.py, where the blocks are cut before percentile and maximum.
    """
    found = np.zeros(raw_max.shape, dtype=bool)
    early = moe_block < round(SUPER_DEPTH * blocks)
    pool = raw_max[early]
    if pool.size:
        large = pool > np.percentile(pool, SUPER_PERCENTILE)
        found[early] = large & (pool > pool.max() // SUPER_RATIO)
    return found & forming[moe_block][:, None]


def writing_block(residual_max: Array) -> int | None:
    """Return the first block that raises the residual stream's maximum threefold, or None.

    Args:
        residual_max: (sequence, block), largest abs(h) of the block's output.
    """
    usual = np.median(residual_max, axis=0).astype(float)
    rises = np.flatnonzero(usual[1:] >= GROWTH * usual[:-1])
    return int(rises[0]) + 1 if len(rises) else None


def writers(share: Array, moe_block: Array, residual_max: Array) -> Array:
    """Find the expert that writes what a block raises the residual stream's maximum by.

    Args:
        share: (sequence, moe_block, expert), share of the whole MLP's output that the expert writes
            at the feature and position of the block's largest abs(h); NaN where its largest output
            is elsewhere.
        moe_block: (moe_block,), number of each block.
        residual_max: (sequence, block).

    Returns:
        (moe_block, expert), bool: at the first block that raises the maximum threefold, those with
        a share of at least half in at least half of the sequences.
    """
    found = np.zeros(share.shape[1:], dtype=bool)
    block = writing_block(residual_max)
    for place in np.flatnonzero(moe_block == block) if block is not None else ():
        often = (np.nan_to_num(share[:, place], nan=-np.inf) >= WRITTEN).mean(axis=0)
        found[place] = often >= WRITTEN
    return found


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
        is_super: super expert by the rule of Su et al. 2025.
        super_sequence_share: share of the sequences in which it is one by itself.
        is_writer: writes what a block raises the residual stream's maximum by.
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
    is_writer: Array
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

        massive = residual.massive_2024(
            statistics["residual_max"].values, statistics["residual_median"].values
        )
        each = np.stack(
            [
                super_experts(one, block, blocks, residual.forming(own[None]))
                for one, own in zip(raw, massive, strict=True)
            ]
        )
        share, number = _jump(statistics, written)
        return cls(
            largest=at_largest("expert_max"),
            feature=at_largest("expert_max_feature"),
            sequence=sequence,
            position=at_largest("expert_max_position"),
            mean=np.abs(written).mean(axis=0),
            raw_max=raw.max(axis=0),
            is_super=super_experts(raw.max(axis=0), block, blocks, residual.forming(massive)),
            super_sequence_share=each.mean(axis=0),
            is_writer=writers(share, block, statistics["residual_max"].values),
            jump_share=_medians(share),
            jump_sequences=number,
        )


def _jump(statistics: xr.Dataset, written: Array) -> tuple[Array, Array]:
    """Share of the MLP's output at the block's largest abs(h), and in how many sequences.

    Returns:
        (sequence, moe_block, expert), NaN where the expert's largest output is elsewhere; and
        (moe_block, expert).
    """
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
    return np.where(there, written / np.where(there, total, 1), np.nan), there.sum(axis=0)


def _medians(share: Array) -> Array:
    """Median over the sequences that have a value; NaN where none has."""
    result = np.full(share.shape[1:], np.nan)
    for place in zip(*np.nonzero(~np.isnan(share).all(axis=0)), strict=True):
        result[place] = np.nanmedian(share[(slice(None), *place)])
    return result
