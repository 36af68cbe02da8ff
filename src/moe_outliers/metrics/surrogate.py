"""What a model without outliers would show: Gaussian activations behind the model's own gains.

x = gain * N(0, 1) + offset at every site, position and feature. An absolute threshold on x says
nothing where this surrogate reaches it too. It takes every feature to be of one size before the
gain; `expected_wide` says what features of different sizes alone would give by z.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import special

from moe_outliers.metrics.counts import Basis, least, reaches
from moe_outliers.stats import Array

GRID = np.concatenate([[0.0], np.geomspace(1e-12, 0.01, 2000), np.linspace(0.01, 1, 8001)[1:]])
"""Coverages at which the chance to fire is computed; between them it is interpolated."""


@dataclass(frozen=True)
class Surrogate:
    """The Gaussian surrogate of one model.

    Attributes:
        gain: (site, feature), abs of the effective gain.
        offset: (site, feature).
        positions: of a sequence.
    """

    gain: Array
    offset: Array
    positions: int

    @classmethod
    def of(cls, statistics: xr.Dataset) -> "Surrogate":
        """Take the gains and the number of positions out of a statistics file."""
        return cls(
            np.abs(statistics["gain"].values.astype(float)),
            statistics["offset"].values.astype(float),
            int(statistics["positions"].values.min()),
        )

    def coverage(self, basis: Basis, alpha: float) -> Array:
        """Expected coverage (M1), (site, feature).

        By z 2 Phi(-alpha), by x 2 Phi(-alpha / |gain|) without an offset. By y NaN: it needs the
        readers' weights.
        """
        if basis != "x":
            expected = 2 * special.ndtr(-alpha) if basis == "z" else np.nan
            return np.full((1, self.gain.shape[1]), expected)
        gain = np.where(self.gain > 0, self.gain, np.nan)
        tails = special.ndtr((self.offset - alpha) / gain) + special.ndtr(
            (-self.offset - alpha) / gain
        )
        still = np.abs(self.offset) >= alpha
        return np.where(self.gain > 0, tails, still)

    def extent(self, coverage: Array, position_share: float) -> Array:
        """Expected extent (M3), (feature,): mean over sites of the chance to fire.

        Args:
            coverage: (site, feature), expected.
            position_share: share of the positions at which a site fires.
        """
        enough = int(least(np.array(self.positions), position_share))
        chance = special.bdtrc(enough - 1, self.positions, GRID)
        return np.interp(coverage, GRID, chance).mean(axis=0)

    def features(
        self, coverage: Array, position_share: float, layer_share: float
    ) -> tuple[int, float]:
        """Return how many features would be candidates, and their mean extent (NaN for none)."""
        extent = self.extent(coverage, position_share)
        chosen = reaches(extent, layer_share)
        return int(chosen.sum()), float(extent[chosen].mean()) if chosen.any() else np.nan


TRIMMED = 0.05
"""Share of the features that is left out at each end of their sizes, where the lognormal is fitted:
outlier features must not widen what is expected without them."""


def expected_wide(rms: Array, magnitude: float, position_share: float) -> float:
    """Return how many features would be wide if all sizes were those of one lognormal.

    A wide feature is an ordinary Gaussian one that is large enough to pass the threshold often.

    Args:
        rms: (feature,), root mean square of each feature's z, positive.
        magnitude: threshold of abs(z).
        position_share: share of the positions that makes a site fire, in (0, 1).

    Returns:
        The width times the chance of a root mean square at which 2 Phi(-magnitude / rms) is at
        least position_share, in the lognormal fitted to the middle 90 % of the sizes; NaN where
        one position is enough, which any Gaussian feature has in a long enough text.
    """
    if position_share <= 0:
        return float("nan")
    low, middle, high = np.quantile(np.log(rms), (TRIMMED, 0.5, 1 - TRIMMED))
    spread = (high - low) / (2 * special.ndtri(1 - TRIMMED))
    needed = np.log(magnitude / special.ndtri(1 - position_share / 2))
    if spread == 0:
        return float(len(rms) if middle >= needed else 0)
    return float(len(rms) * special.ndtr((middle - needed) / spread))
