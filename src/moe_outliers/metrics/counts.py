"""Where a feature fires: positions above a threshold, site by site (M1 to M4, M6).

Axes are named in every docstring; `site` runs over two norms a block in order of the forward pass.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from moe_outliers.stats import Array
from moe_outliers.storage.statistics_file import KINDS

Basis = Literal["z", "x", "y"]

BASES: tuple[Basis, ...] = ("z", "x", "y")
"""The values whose size is asked for, each by itself; none is a condition of another.

z: the norm's own value, before gain and offset, in root mean squares of the token. No rescaling of
gains moves it: the headline. x: the norm's output, as Dettmers et al. 2022 had it; a gain and the
weights behind it can be scaled against each other without changing the network, and x moves. y: z
as the site's readers weigh it, in root mean squares over features.
"""

HEADLINE: Basis = "z"

ROUNDING = 1e-9


def reach(basis: Basis, width: int) -> float:
    """Return the largest threshold that a basis is asked at: half of what its value can be.

    z and y are at most sqrt(width), where one feature has all of the token's energy.
    """
    return float(np.inf if basis == "x" else np.sqrt(width) / 2)


@dataclass(frozen=True)
class Counts:
    """The counts of one model.

    Attributes:
        above: by basis, (sequence, site, alpha, feature), positions with an abs value >= alpha;
            without a basis that the statistics do not have.
        alphas: by basis, (alpha,), its thresholds, ascending.
        positions: (sequence,), positions of each sequence.
        kind: (site,), attn_in or mlp_in.
        mixer: (site,), what the site's output enters.
    """

    above: dict[Basis, Array]
    alphas: dict[Basis, Array]
    positions: Array
    kind: Array
    mixer: Array

    @classmethod
    def of(cls, statistics: xr.Dataset) -> "Counts":
        """Take the counts out of a statistics file; those of y have thresholds of their own.

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
        there: list[Basis] = [basis for basis in BASES if f"{basis}_count" in statistics]
        return cls(
            above={basis: statistics[f"{basis}_count"].values for basis in there},
            alphas={
                basis: statistics["y_alpha" if basis == "y" else "alpha"].values for basis in there
            },
            positions=statistics["positions"].values,
            kind=kind,
            mixer=statistics["site_mixer"].values.astype(str),
        )

    @property
    def bases(self) -> tuple[Basis, ...]:
        """The bases that the statistics have."""
        return tuple(self.above)

    @property
    def sites(self) -> int:
        """Number of sites."""
        return len(self.kind)

    @property
    def features(self) -> int:
        """Width of the model."""
        return int(self.above["x"].shape[-1])

    def at(self, basis: Basis, alpha: float) -> Array:
        """Return the counts at one threshold, (sequence, site, feature).

        Raises:
            ValueError: if the file has no counts at that threshold.
        """
        matches = np.flatnonzero(np.isclose(self.alphas[basis], alpha))
        if not len(matches):
            stored = ", ".join(f"{each:g}" for each in self.alphas[basis])
            raise ValueError(f"no counts of {basis} at threshold {alpha:g}; stored are: {stored}")
        return self.above[basis][:, :, matches[0]]

    def firing(self, basis: Basis, alpha: float, position_share: float) -> Array:
        """Say at which sites a feature fires (M2): at enough positions.

        Args:
            basis: whose size is asked for.
            alpha: the threshold.
            position_share: share of the positions that is enough, in [0, 1]; 0 asks for one.

        Returns:
            (sequence, site, feature), bool.
        """
        counts = self.at(basis, alpha)
        enough = least(self.positions, position_share).astype(counts.dtype)[:, None, None]
        fires: Array = counts >= enough
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


def at_firing(counts: Array, fires: Array) -> Array:
    """Sum the counts of each feature over the sites at which it fires: its outlier values.

    Positions above the threshold at other sites are left out: in a wide model the tails of
    thousands of ordinary features outweigh a few outlier features.

    Args:
        counts: (sequence, site, feature), of one basis and threshold.
        fires: the same, bool, of that basis and threshold.

    Returns:
        (sequence, feature), int64.
    """
    return np.add.reduce(np.where(fires, counts, 0), axis=1, dtype=np.int64)


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
    total = at_firing(counts, fires)
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
