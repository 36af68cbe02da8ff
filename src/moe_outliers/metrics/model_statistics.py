"""One model's statistics as all metrics read them, and quantities that several metrics share."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import xarray as xr

from moe_outliers.metrics.classes import FeatureClasses, classify, kind_of, subsets_of
from moe_outliers.metrics.consistency import Shifts, period
from moe_outliers.metrics.counts import HEADLINE, Basis, Counts, at_firing, reach
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.selection import CrossFit, Extents
from moe_outliers.stats import Array, draws
from moe_outliers.storage import parquet

SEQUENCE_SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    sequence=(pa.int32(), "index of the sequence in the sweep, the same text for every model"),
    document=(pa.string(), "document that the text is from"),
    text_sha256=(pa.string(), "digest of the text: pairs the sequences of different models"),
    ids_sha256=(pa.string(), "digest of the token ids: orders and keys every random draw"),
    tokens=(pa.int32(), "positions"),
    delimiters=(pa.int32(), "delimiter positions"),
    first_end_byte=(pa.int32(), "byte of the text where the first token ends"),
    last_end_byte=(pa.int32(), "byte of the text where the last token ends"),
)
"""One row a sequence, in the order of ids_sha256."""


def named_sequence(row: Mapping[str, Any]) -> str:
    """Name a sequence for people: by its index and document, of a row of SEQUENCE_SCHEMA."""
    return f"sequence {row['sequence']} ({row['document']})"


@dataclass(frozen=True)
class ModelStatistics:
    """The statistics of one model; what several metrics need is computed once, when first used.

    Attributes:
        slug: its name in the table of models.
        statistics: its statistics, sequences in the order of their ids_sha256.
        tokens: its tokens, one row a sequence, in the same order.
        criteria: what counts as an outlier feature.
        seed: of every draw.
    """

    slug: str
    statistics: xr.Dataset
    tokens: pa.Table
    criteria: Criteria
    seed: int

    @classmethod
    def of(
        cls, slug: str, statistics: xr.Dataset, tokens: pa.Table, criteria: Criteria, seed: int
    ) -> "ModelStatistics":
        """Sort statistics and tokens by ids_sha256; statistics in that order are not copied.

        Raises:
            ValueError: if the tokens are not of the same sequences, or these have no or differing
                numbers of positions.
        """
        sequences = statistics["sequence"].values.tolist()
        named = tokens["sequence"].to_pylist()
        if missing := sorted(set(sequences) - set(named)):
            raise ValueError(f"{slug}: sequences {missing} are not in the tokens file")
        tokens = tokens.take([named.index(sequence) for sequence in sequences])
        places = draws.order(tokens["ids_sha256"].to_pylist()).tolist()
        if places != sorted(places):
            statistics = statistics.isel(sequence=places)
        if len(set(statistics["positions"].values.tolist())) != 1:
            raise ValueError(f"{slug}: the sequences have differing numbers of positions")
        return cls(slug, statistics, tokens.take(places), criteria, seed)

    @cached_property
    def counts(self) -> Counts:
        """The counts of the model."""
        return Counts.of(self.statistics)

    @cached_property
    def shifts(self) -> Shifts:
        """The permutations of the circular-shift test."""
        firing = self.counts.at("x", self.counts.alphas["x"][0])
        return Shifts.draw(firing, period(self.counts.mixer), self.rng("shifts"))

    @cached_property
    def subsets(self) -> dict[str, Array]:
        """Subsets of the sites in which a feature may be systematic: each (site,), bool."""
        return subsets_of(self.counts.kind, self.counts.mixer)

    @property
    def bases(self) -> tuple[Basis, ...]:
        """The bases that the statistics have, the headline's first."""
        return self.counts.bases

    @cached_property
    def ids_sha256(self) -> list[str]:
        """Digests of the sequences' token ids, ascending."""
        return [str(digest) for digest in self.tokens["ids_sha256"].to_pylist()]

    @property
    def features(self) -> int:
        """Width of the model."""
        return self.statistics.sizes["feature"]

    @property
    def sequences(self) -> Array:
        """(sequence,), their indices in the sweep."""
        return self.statistics["sequence"].values

    def rng(self, purpose: str) -> np.random.Generator:
        """Return the generator of one purpose."""
        return draws.generator(self.seed, purpose, self.ids_sha256)

    def has(self, *variables: str) -> bool:
        """Tell whether the statistics hold all these variables, and values in each."""
        there = self.statistics.data_vars
        return all(name in there and self.statistics[name].size for name in variables)

    def alpha(self, basis: Basis) -> float:
        """Return the threshold of the headline by a basis."""
        return self.criteria.at(basis)

    def in_reach(self, basis: Basis, alpha: float) -> bool:
        """Tell whether a basis can be asked at a threshold, for the width of the model."""
        return alpha <= reach(basis, self.features)

    @cached_property
    def firing(self) -> dict[Basis, Array]:
        """Where features fire at the headline's thresholds, by basis: (sequence, site, feature)."""
        share = self.criteria.position_share
        return {basis: self.counts.firing(basis, self.alpha(basis), share) for basis in self.bases}

    @cached_property
    def extents(self) -> dict[Basis, Extents]:
        """Extents at the headline's thresholds, by basis, over all sites and over subsets."""
        return {
            basis: Extents.of(fires, self.subsets.values()) for basis, fires in self.firing.items()
        }

    @cached_property
    def fit(self) -> dict[Basis, CrossFit]:
        """Candidates by basis, chosen on all folds but one."""
        return {
            basis: CrossFit.of(extents, self.criteria.layer_share)
            for basis, extents in self.extents.items()
        }

    @cached_property
    def classes(self) -> dict[Basis, FeatureClasses]:
        """Classes of the features by basis."""
        return {basis: self.classify(fires) for basis, fires in self.firing.items()}

    def classify(self, fires: Array, screen: int | None = None) -> FeatureClasses:
        """Class the features by where they fire, with the same draws at every threshold."""
        return classify(
            fires,
            layer_share=self.criteria.layer_share,
            subsets=self.subsets,
            shifts=self.shifts,
            screen=screen,
        )

    @cached_property
    def z_rms(self) -> Array | None:
        """(feature,), root mean square of z over all sites and positions; None: not recorded."""
        if not self.has("z_square"):
            return None
        square = self.statistics["z_square"].values.mean(axis=1, dtype=float)
        return np.sqrt((square / self.counts.positions[:, None]).mean(axis=0))

    @cached_property
    def kinds(self) -> Array | None:
        """(feature,), how each feature's z comes to be large; None: not recorded."""
        if not self.has("z_sum", "z_square", "z_first"):
            return None
        first = self.statistics["z_first"].values.astype(float)
        return kind_of(
            self.statistics["z_sum"].values - first,
            self.statistics["z_square"].values - first**2,
            self.firing[HEADLINE],
            self.counts.positions,
            magnitude=self.alpha(HEADLINE),
            position_share=self.criteria.position_share,
        )

    @cached_property
    def label(self) -> Array:
        """(feature,), the class of each feature by the headline's basis."""
        return self.classes[HEADLINE].label

    @cached_property
    def outliers(self) -> dict[Basis, Array]:
        """Outlier values at the headline's thresholds, by basis: (sequence, feature)."""
        return {
            basis: at_firing(self.counts.at(basis, self.alpha(basis)), fires)
            for basis, fires in self.firing.items()
        }

    def sequence_table(self) -> pa.Table:
        """Describe the sequences, one row each, of SEQUENCE_SCHEMA."""
        ends = [np.array(row) for row in self.tokens["ends"].to_pylist()]
        same = ("sequence", "document", "text_sha256", "ids_sha256")
        return parquet.table(
            SEQUENCE_SCHEMA,
            {
                "model": self.slug,
                "tokens": self.statistics["positions"].values,
                "delimiters": self.statistics["delimiters"].values,
                "first_end_byte": [row[0] for row in ends],
                "last_end_byte": [row[-1] for row in ends],
                **{name: self.tokens[name].to_pylist() for name in same},
            },
        )
