"""Moments of the activations at each site, and their error of 8-bit rounding (M9, M18)."""

import numpy as np
import xarray as xr

from moe_outliers.stats import Array


def rms(statistics: xr.Dataset) -> Array:
    """Root mean square of x over positions and features, (sequence, site)."""
    return np.sqrt(_raw(statistics)[..., 1])


def excess_kurtosis(statistics: xr.Dataset) -> Array:
    """Excess kurtosis of all x of a site (M9): biased, about the mean; 0 for a Gaussian.

    Returns:
        (sequence, site), NaN where x is constant.
    """
    m1, m2, m3, m4 = np.moveaxis(_raw(statistics), -1, 0)
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    constant = variance <= 1e-14 * m2
    return np.where(constant, np.nan, fourth / np.where(constant, 1, variance) ** 2 - 3)


def token_excess_kurtosis(statistics: xr.Dataset) -> Array:
    """Mean over positions of the excess kurtosis over features (M9), (sequence, site)."""
    return statistics["token_kurtosis"].values - 3


def sqnr_db(error: Array) -> Array:
    """Signal to quantisation noise (M18): -10 log10 of the relative squared error, in decibels.

    Args:
        error: sum (x - int8 x)^2 / sum x^2, any shape.

    Returns:
        Of the same shape; NaN for an error of zero.
    """
    error = error.astype(float)
    return np.where(error > 0, -10 * np.log10(np.where(error > 0, error, 1)), np.nan)


def _raw(statistics: xr.Dataset) -> Array:
    """Raw moments, (sequence, site, power)."""
    sums = statistics["power_sum"].values
    values = statistics["positions"].values * statistics.sizes["feature"]
    return sums / values[:, None, None]
