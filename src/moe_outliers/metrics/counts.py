"""Where a feature fires: positions above a threshold, site by site (M1 to M4, M6).

Axes are named in every docstring; `site` runs over two norms a block in order of the forward pass.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from moe_outliers.stats import Array
from moe_outliers.storage.statistics_file import KINDS

Basis = Literal["fires", "x", "z"]

BASES: tuple[Basis, ...] = ("fires", "x", "z")
"""What must reach its threshold: x and z both, x alone, z alone."""

Z_MAGNITUDE = 3.0
"""A site fires only if abs(z) too is at least this at enough positions. z is in units of the
token's root mean square: a Gaussian is above 3 at 0.27 % of the positions, whatever the gain."""

ROUNDING = 1e-9


@dataclass(frozen=True)
class Counts:
    """The counts of one model.

    Attributes:
        x: (sequence, site, alpha, feature), positions with abs(x) >= alpha.
        z: the same for abs(z).
        alphas: (alpha,), thresholds, ascending.
        positions: (sequence,), positions of each sequence.
        kind: (site,), attn_in or mlp_in.
        mixer: (site,), what the site's output enters.
    """

    x: Array
    z: Array
    alphas: Array
    positions: Array
    kind: Array
    mixer: Array

    @classmethod
    def of(cls, statistics: xr.Dataset) -> "Counts":
        """Take the counts out of a statistics file.

        Raises:
            ValueError: if the sites are not two a block, attn_in and mlp_in, in that order.
        """
        block, kind = statistics["site_block"].values, statistics["site_kind"].values.astype(str)
        blocks = len(block) // 2
        if not (
            np.array_equal(block, np.repeat(np.arange(blocks), 2))
            and np.array_equal(kind, np.tile(KINDS, blocks))
        ):
            raise ValueError("statistics: the sites must be attn_in and mlp_in of each block")
        return cls(
            x=statistics["x_count"].values,
            z=statistics["z_count"].values,
            alphas=statistics["alpha"].values,
            positions=statistics["positions"].values,
            kind=kind,
            mixer=statistics["site_mixer"].values.astype(str),
        )

    @property
    def sites(self) -> int:
        """Number of sites."""
        return int(self.x.shape[1])

    def at(self, basis: Basis, alpha: float) -> Array:
        """Return the counts at one threshold, (sequence, site, feature); `fires` has those of x.

        Raises:
            ValueError: if the file has no counts at that threshold.
        """
        matches = np.flatnonzero(np.isclose(self.alphas, alpha))
        if not len(matches):
            raise ValueError(f"no counts at threshold {alpha:g}; extract.alphas: {self.alphas}")
        return (self.z if basis == "z" else self.x)[:, :, matches[0]]

    def firing(self, basis: Basis, alpha: float, position_share: float) -> Array:
        """Say at which sites a feature fires (M2): at enough positions.

        Args:
            basis: x counts positions with abs(x) >= alpha, z those with abs(z) >= alpha; `fires`
                asks for x at alpha and for z at 3, so that no site fires by its gain alone.
            alpha: the threshold.
            position_share: share of the positions that is enough, in [0, 1]; 0 asks for one.

        Returns:
            (sequence, site, feature), bool.
        """
        enough = least(self.positions, position_share).astype(self.x.dtype)[:, None, None]
        fires: Array = self.at(basis, alpha) >= enough
        if basis == "fires":
            fires &= self.at("z", Z_MAGNITUDE) >= enough
        return fires


def least(whole: Array, share: float) -> Array:
    """Return the smallest count that is at least a share of the whole, and at least one."""
    return np.maximum(1, np.ceil(share * whole - ROUNDING)).astype(np.int64)


def reaches(value: Array, share: float) -> Array:
    """Compare a share that was computed by division with a threshold, both in [0, 1]."""
    return value >= share - ROUNDING


def site_extent(fires: Array) -> Array:
    """Share of the sites at which a feature fires (M3): (sequence, site, feature) without site."""
    return np.add.reduce(fires, axis=1, dtype=np.int32) / fires.shape[1]


def block_extent(fires: Array) -> Array:
    """Share of the blocks with a site at which a feature fires (M3), (sequence, feature)."""
    return site_extent(fires[:, 0::2] | fires[:, 1::2])


def pair_share(counts: Array, positions: Array) -> Array:
    """Share of all pairs of site and position that are above the threshold (M4).

    Args:
        counts: (sequence, site, feature).
        positions: (sequence,).

    Returns:
        (sequence, feature), the mean coverage (M1) over all sites.
    """
    total = np.add.reduce(counts, axis=1, dtype=np.int64)
    return total / (counts.shape[1] * positions[:, None])


def firing_share(counts: Array, fires: Array, positions: Array) -> Array:
    """Mean coverage over the sites at which the feature fires (M4); NaN where it fires nowhere."""
    total = np.add.reduce(np.where(fires, counts, 0), axis=1, dtype=np.int64)
    sites = np.add.reduce(fires, axis=1, dtype=np.int64)
    return _ratio(total, sites * positions[:, None])


@dataclass(frozen=True)
class Band:
    """Where over the depth a feature fires (M6).

    Attributes:
        onset: (feature,), first site at which it fires in at least half of the sequences; -1 if
            there is none.
        offset: (feature,), the last such site.
        fill: (feature,), share of the pairs of sequence and site from onset to offset at which it
            fires; NaN without an onset.
    """

    onset: Array
    offset: Array
    fill: Array

    @classmethod
    def of(cls, fires: Array) -> "Band":
        """Find the band of each feature from (sequence, site, feature), bool."""
        often = fires.mean(axis=0)
        usual = often >= 0.5
        sites = np.arange(len(often))[:, None]
        there = usual.any(axis=0)
        onset = np.where(there, usual.argmax(axis=0), -1)
        offset = np.where(there, len(often) - 1 - usual[::-1].argmax(axis=0), -1)
        inside = (sites >= onset) & (sites <= offset) & there
        fill = _ratio((often * inside).sum(axis=0), inside.sum(axis=0))
        return cls(onset, offset, fill)


def _ratio(part: Array, whole: Array) -> Array:
    """Divide; NaN where the whole is zero."""
    empty = whole == 0
    return np.where(empty, np.nan, part / np.where(empty, 1, whole))
