"""On which tokens an outlier feature fires: a feature of "the" or of "." is a token detector.

Where a feature fires on certain ids only, its sites differ between sequences because the texts do,
and "no agreement between sequences" is theirs. Nothing here needs more than the statistics have:
position_feature names the feature of the largest abs(x) at each position of a site.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from moe_outliers.metrics.magnitude import TYPES
from moe_outliers.stats import Array
from moe_outliers.storage import parquet

TOP = 5
"""Ids of a feature that are listed."""

HALF = 0.5

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    feature=(pa.int32(), "number of the feature"),
    rank=(pa.int32(), "1 for the id with most of its positions"),
    id=(pa.int32(), "token id, of the model's own tokenizer"),
    token_type=(pa.string(), "type of most of these positions: first, delimiter or other"),
    positions_share=(
        pa.float64(), "share of the feature's positions, over all sites, that have this id"
    ),
    frequency_share=(pa.float64(), "share of all positions of the texts that have it"),
    sequences=(pa.int32(), "sequences with such a position"),
)  # fmt: skip
"""One row a feature and id: the five with most of its positions."""


@dataclass(frozen=True)
class FeatureTokens:
    """The tokens of one feature.

    Attributes:
        seen: pairs of site and position at which the feature has the largest abs(x), and that is at
            least the magnitude.
        half_share: how frequent, among all positions, the fewest ids are that hold half of these
            pairs: .5 for a feature that does not look at the token, near 0 for a token detector;
            NaN for a feature that is never seen.
        ids: (id,), the ids with most pairs, the most first, ties by id.
        share: (id,), share of the pairs.
        frequency: (id,), share of all positions.
        kind: (id,), place in TYPES of most of the pairs.
        sequences: (id,), sequences with such a pair.
    """

    seen: int
    half_share: float
    ids: Array
    share: Array
    frequency: Array
    kind: Array
    sequences: Array

    @classmethod
    def of(cls, hits: Array, ids: Array, delimiter: Array) -> "FeatureTokens":
        """Count the ids.

        Args:
            hits: (sequence, position), sites at which the feature is seen.
            ids: (sequence, position), token ids.
            delimiter: (sequence, position), bool.
        """
        known, place = np.unique(ids, return_inverse=True)
        place = place.reshape(ids.shape)
        frequency = np.bincount(place.ravel(), minlength=len(known)) / ids.size
        counts = np.bincount(place.ravel(), weights=hits.ravel(), minlength=len(known))
        seen = int(counts.sum())
        order = np.lexsort((known, -counts))[: int((counts > 0).sum())]
        if not seen:
            whole, real = np.zeros(0, dtype=int), np.zeros(0)
            return cls(0, np.nan, whole, real, real, whole, whole)
        enough = int(np.searchsorted(np.cumsum(counts[order]), HALF * seen)) + 1
        kinds = np.where(delimiter, TYPES.index("delimiter"), TYPES.index("other"))
        kinds[:, 0] = TYPES.index("first")
        top = order[:TOP]
        weights = [
            np.bincount(kinds[place == each], weights=hits[place == each], minlength=len(TYPES))
            for each in top
        ]
        return cls(
            seen,
            float(frequency[order[:enough]].sum()),
            known[top],
            counts[top] / seen,
            frequency[top],
            np.array([weight.argmax() for weight in weights]),
            np.array([((place == each) & (hits > 0)).any(axis=1).sum() for each in top]),
        )


def seen_at(position_feature: Array, position_max: Array, magnitude: float) -> Array:
    """Return the feature of each outlier position, (sequence, site, position); -1 elsewhere.

    Args:
        position_feature: (sequence, site, position), the feature of the largest abs(x).
        position_max: (sequence, site, position), that abs(x).
        magnitude: the least that counts.
    """
    return np.where(position_max >= magnitude, position_feature.astype(np.int64), -1)


def tabulate(model: str, found: dict[int, FeatureTokens]) -> pa.Table:
    """Make the table of SCHEMA from the tokens of features, by number."""
    rows = [
        {
            "feature": feature,
            "rank": rank + 1,
            "id": tokens.ids[rank],
            "token_type": TYPES[tokens.kind[rank]],
            "positions_share": tokens.share[rank],
            "frequency_share": tokens.frequency[rank],
            "sequences": tokens.sequences[rank],
        }
        for feature, tokens in found.items()
        for rank in range(len(tokens.ids))
    ]
    return parquet.of_rows(SCHEMA, rows, model=model)
