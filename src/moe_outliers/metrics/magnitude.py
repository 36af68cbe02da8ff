"""How large outlier values are, of which sign, and what the norm's gain does to them (M7, M8, M14).

x = gain * z + offset with z in units of the token's root mean square, so that
log|x - offset| = log|gain| + log|z|: of a large x, the gain's part is known exactly.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from moe_outliers.stats import Array
from moe_outliers.storage.statistics_file import TOKEN_TYPES

TYPES = ("first", *TOKEN_TYPES)
"""Types of position: position 0, delimiters, and all others. They are disjoint."""

ONE_SIDED = 0.99
"""A feature is one-sided if its one-sidedness is at least this."""


@dataclass(frozen=True)
class Extremes:
    """The extreme values of one model.

    Attributes:
        signed: (sequence, site, feature), the x of largest abs(x), with its sign; positive where
            the smallest and the largest x are of one size.
        low: (sequence, site, feature), the smallest x.
        high: (sequence, site, feature), the largest x.
        by_type: (type, sequence, site, feature), the largest abs(x) by type of position; 0 where
            there are no such positions.
        z: (sequence, site, feature), the largest abs(z).
    """

    signed: Array
    low: Array
    high: Array
    by_type: Array
    z: Array

    @classmethod
    def of(cls, statistics: xr.Dataset) -> "Extremes":
        """Take the extremes out of a statistics file."""
        low, high = statistics["x_min"].values, statistics["x_max"].values
        first = statistics["x_first"].values
        by_type = np.stack([np.abs(first), *np.maximum(-low, high).transpose(2, 0, 1, 3)])
        largest = np.maximum(high.max(axis=2), first)
        smallest = np.minimum(low.min(axis=2), first)
        signed = np.where(largest >= -smallest, largest, smallest)
        return cls(signed, smallest, largest, by_type, statistics["z_max"].values)


@dataclass(frozen=True)
class Magnitudes:
    """Magnitudes of each feature where it fires; all axes are (feature,), NaN where it never does.

    Attributes:
        quartiles: (3, feature), of the signed extremes over pairs of sequence and site that fire
            by x.
        in_rms: median over these pairs of the extreme's abs in multiples of the site's rms.
        z: median over pairs that fire by z of the largest abs(z).
        largest: the x of largest abs anywhere, with its sign; never NaN.
        largest_site: its site.
        largest_z: the largest abs(z) anywhere; never NaN.
    """

    quartiles: Array
    in_rms: Array
    z: Array
    largest: Array
    largest_site: Array
    largest_z: Array

    @classmethod
    def of(cls, extremes: Extremes, by_x: Array, by_z: Array, site_rms: Array) -> "Magnitudes":
        """Summarise the extremes.

        Args:
            extremes: of the model.
            by_x: (sequence, site, feature), bool, where features fire by x.
            by_z: the same by z.
            site_rms: (sequence, site), root mean square of x.
        """
        features = by_x.shape[2]
        quartiles = np.full((3, features), np.nan)
        in_rms, z = np.full((2, features), np.nan)
        for feature in np.flatnonzero(by_z.any(axis=(0, 1))):
            z[feature] = np.median(extremes.z[:, :, feature][by_z[:, :, feature]])
        for feature in np.flatnonzero(by_x.any(axis=(0, 1))):
            there = by_x[:, :, feature]
            values = extremes.signed[:, :, feature][there].astype(float)
            quartiles[:, feature] = np.quantile(values, (0.25, 0.5, 0.75))
            in_rms[feature] = np.median(np.abs(values) / site_rms[there])
        sequence, site = _argmax(np.abs(extremes.signed))
        largest = extremes.signed[sequence, site, np.arange(features)]
        return cls(quartiles, in_rms, z, largest, site, extremes.z.max(axis=(0, 1)))


def one_sidedness(positive: Array, count: Array) -> Array:
    """Compare positions with x >= 6 and with x <= -6 (M8): |n+ - n-| / (n+ + n-).

    Args:
        positive: positions with x >= 6, summed over sites, any shape.
        count: positions with abs(x) >= 6, of the same shape.

    Returns:
        In [0, 1]: 1 for one sign only; NaN where there are no such positions.
    """
    positive, count = positive.astype(float), count.astype(float)
    return np.where(count > 0, np.abs(2 * positive - count) / np.maximum(count, 1), np.nan)


def gain_free_share(fires_x: Array, fires_z: Array) -> Array:
    """Share of the firing sites that are large before the gain too (M14), (sequence,).

    Args:
        fires_x: (sequence, site, feature), bool, abs(x) is at the threshold.
        fires_z: the same, abs(z) is at the threshold.
    """
    both = (fires_x & fires_z).sum(axis=(1, 2)).astype(float)
    all_x = fires_x.sum(axis=(1, 2))
    return np.where(all_x > 0, both / np.maximum(all_x, 1), np.nan)


@dataclass(frozen=True)
class Gains:
    """The norms' gains as they bear on each feature; all axes are (feature,).

    Attributes:
        median: median over sites of abs(gain).
        z_score: median over sites of the distance of abs(gain) from the site's mean over features,
            in standard deviations; NaN where a site's gains are all alike.
        at_largest: abs(gain) at the site of the feature's largest abs(x).
    """

    median: Array
    z_score: Array
    at_largest: Array

    @classmethod
    def of(cls, gain: Array, largest_site: Array) -> "Gains":
        """Summarise gains, (site, feature)."""
        size = np.abs(gain.astype(float))
        spread = size.std(axis=1, keepdims=True)
        alike = spread <= 1e-9 * size.mean(axis=1, keepdims=True)
        distance = np.where(
            alike, np.nan, (size - size.mean(axis=1, keepdims=True)) / np.where(alike, 1, spread)
        )
        z_score = np.full(gain.shape[1], np.nan)
        if not alike.all():
            z_score = np.nanmedian(distance, axis=0)
        return cls(np.median(size, axis=0), z_score, size[largest_site, np.arange(gain.shape[1])])


def type_shares(statistics: xr.Dataset, counts: Array) -> Array:
    """Coverage at 6 by type of position (M21).

    Args:
        statistics: with x_first, x_delimiter, positions and delimiters.
        counts: (sequence, site, feature), positions with abs(x) >= 6.

    Returns:
        (type, sequence, feature), mean over sites; NaN in a sequence without such positions.
    """
    sites = counts.shape[1]
    first = (np.abs(statistics["x_first"].values) >= 6).sum(axis=1).astype(float)
    delimiter = statistics["x_delimiter"].values.sum(axis=1, dtype=float)
    other = counts.sum(axis=1, dtype=float) - first - delimiter
    delimiters = statistics["delimiters"].values[:, None].astype(float)
    positions = statistics["positions"].values[:, None] - delimiters - 1
    shares = [
        np.where(there > 0, number / np.maximum(sites * there, 1), np.nan)
        for number, there in ((first, np.ones(1)), (delimiter, delimiters), (other, positions))
    ]
    return np.stack(shares)


def _argmax(values: Array) -> tuple[Array, Array]:
    """Return the sequence and site of each feature's largest value; the first on ties."""
    sequences, sites, features = values.shape
    flat = values.reshape(sequences * sites, features).argmax(axis=0)
    return flat // sites, flat % sites
