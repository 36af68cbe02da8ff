"""What a model without outliers would show: Gaussian activations behind the model's own gains.

x = gain * N(0, 1) + offset at every site, position and feature. An absolute threshold on x says
nothing where this surrogate reaches it too.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import special

from moe_outliers.metrics.counts import Z_MAGNITUDE, Basis, least, reaches
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
        """Expected coverage (M1), (site, feature): 2 Phi(-alpha / |gain|) without an offset.

        For `fires`, x above alpha and z above 3 are nested where there is no offset, so that the
        rarer of the two decides.
        """
        if basis == "z":
            return np.full((1, self.gain.shape[1]), 2 * special.ndtr(-alpha))
        gain = np.where(self.gain > 0, self.gain, np.nan)
        tails = special.ndtr((self.offset - alpha) / gain) + special.ndtr(
            (-self.offset - alpha) / gain
        )
        still = np.abs(self.offset) >= alpha
        expected: Array = np.where(self.gain > 0, tails, still)
        return expected if basis == "x" else np.minimum(expected, 2 * special.ndtr(-Z_MAGNITUDE))

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
