"""All metrics of one model, from its statistics to its tables."""

import numpy as np
import pyarrow as pa
import xarray as xr

from moe_outliers.metrics import by_feature, by_sequence, by_site, by_threshold, language, residual
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.feature_tokens import SCHEMA as FEATURE_TOKENS
from moe_outliers.metrics.feature_tokens import tabulate
from moe_outliers.metrics.legacy import Legacy
from moe_outliers.metrics.magnitude import Extremes
from moe_outliers.metrics.model_statistics import SEQUENCE_SCHEMA, ModelStatistics
from moe_outliers.metrics.selection import LeftOut, stability
from moe_outliers.metrics.values import SCHEMA as VALUES
from moe_outliers.metrics.values import Values
from moe_outliers.storage import parquet

STABILITY = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    basis=(pa.string(), "whose size is asked for: z, x or y"),
    split=(pa.int32(), "number of the random halving of the sequences"),
    jaccard=(pa.float64(), "M19: Jaccard index of the halves' candidates; empty if both are empty"),
    spearman=(
        pa.float64(),
        "M19: rank correlation of the extents over the union of candidates; empty below three",
    ),
)
"""One row a basis and random halving."""

CROSS_BATCH = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    basis=(pa.string(), "whose size is asked for: z, x or y"),
    sequence=(pa.int32(), "the sequence that is left out, a batch of one"),
    chosen=(pa.int32(), "candidates of all other sequences"),
    alone=(pa.int32(), "candidates of this sequence alone"),
    n_dims=(pa.int32(), "features that are both"),
    extent_share=(pa.float64(), "mean extent in this sequence of the others' candidates"),
    jaccard=(pa.float64(), "Jaccard index of the two sets; empty if both are empty"),
    spearman=(pa.float64(), "rank correlation of the extents over their union; empty below three"),
    model_class=(
        pa.string(),
        "class of the model from all other sequences; empty where these are fewer than 8",
    ),
)
"""Cross-batch validation: one row a basis and sequence."""

PROVENANCE = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    attribute=(pa.string(), "global attribute of the statistics file"),
    value=(pa.string(), "its value, as text"),
)
"""How the statistics were made: one row an attribute."""

TABLES: dict[str, pa.Schema] = {
    "values": VALUES,
    "sequences": SEQUENCE_SCHEMA,
    "features": by_feature.SCHEMA,
    "feature_tokens": FEATURE_TOKENS,
    "profile": by_feature.PROFILE,
    "blocks": residual.SCHEMA,
    "experts": by_site.EXPERTS,
    "sensitivity": by_threshold.SCHEMA,
    "stability": STABILITY,
    "cross_batch": CROSS_BATCH,
    "provenance": PROVENANCE,
    "tokens": language.SCHEMA,
}
"""The tables of one model, by name, with their columns."""

VARIABLES = (
    "x_count", "z_count", "y_count", "z_sum", "z_square", "z_first", "x_min", "x_max",
    "x_first", "z_max", "x_positive", "x_delimiter", "union_count", "gain", "offset",
    "power_sum", "token_kurtosis", "int8_error", "position_max", "position_feature",
    "residual_max", "residual_median", "residual_top_feature", "residual_top_position", "route",
    "router_entropy", "router_margin", "expert_max", "expert_max_feature",
    "expert_max_position", "expert_total", "expert_raw_max", "positions", "delimiters",
    "token_nll",
)  # fmt: skip
"""The variables of the statistics file that metrics read, where it has them."""


def measure(
    slug: str, statistics: xr.Dataset, tokens: pa.Table, criteria: Criteria, seed: int
) -> dict[str, pa.Table]:
    """Compute all metrics of one model.

    Args:
        slug: its name in the table of models.
        statistics: of all its sequences.
        tokens: its tokens, of tokenization.SCHEMA.
        criteria: what counts as an outlier feature.
        seed: of every random draw.

    Returns:
        The tables, named and typed as TABLES says.
    """
    model = ModelStatistics.of(slug, statistics, tokens, criteria, seed)
    extremes = Extremes.of(model.statistics)
    legacy = Legacy.of(
        np.abs(extremes.signed),
        model.statistics["union_count"].sel(union="all").values,
        model.counts.positions,
        layer_share=criteria.layer_share,
        position_share=criteria.position_share,
    )
    values = Values(slug, model.sequences)
    by_sequence.add_held_out(values, model, extremes)
    by_sequence.add_whole(values, model, extremes)
    by_sequence.add_legacy(values, model, legacy)
    by_sequence.add_dettmers(values, model)
    tokens_table = by_sequence.add_language(values, model)
    by_site.add_sites(values, model, extremes)
    feature_tokens = by_feature.tokens_of(model)
    described = by_feature.describe(model, extremes, legacy, feature_tokens)
    tables = {
        "sequences": model.sequence_table(),
        "features": described,
        "feature_tokens": tabulate(slug, feature_tokens),
        "profile": by_feature.profile(model, extremes, described),
        "blocks": by_site.add_blocks(values, model),
        "experts": by_site.add_routers(values, model),
        "sensitivity": by_threshold.sweep(values, model),
        "stability": _stability(model),
        "cross_batch": _cross_batch(model),
        "provenance": _provenance(model),
        "tokens": tokens_table,
    }
    single = by_sequence.add_features(model, extremes)
    return {"values": pa.concat_tables([values.table(), single])} | tables


def _stability(model: ModelStatistics) -> pa.Table:
    rows = [
        {"basis": basis, "split": split, **vars(agreement)}
        for basis in model.bases
        for split, agreement in enumerate(
            stability(model.extents[basis], model.criteria.layer_share, model.rng("halves"))
        )
    ]
    return parquet.of_rows(STABILITY, rows, model=model.slug)


def _cross_batch(model: ModelStatistics) -> pa.Table:
    rows = []
    for basis in model.bases:
        for place, sequence in enumerate(model.sequences):
            left = LeftOut.of(model.extents[basis], place, model.criteria.layer_share)
            rows.append(
                {
                    "basis": basis,
                    "sequence": sequence,
                    "chosen": left.chosen,
                    "alone": left.alone,
                    "n_dims": left.passing,
                    "extent_share": left.extent,
                    **vars(left.agreement),
                    "model_class": by_threshold.class_without(model, basis, place),
                }
            )
    return parquet.of_rows(CROSS_BATCH, rows, model=model.slug)


def _provenance(model: ModelStatistics) -> pa.Table:
    told = {str(name): str(value) for name, value in model.statistics.attrs.items()}
    told.pop("ids_sha256", None)  # of one batch; the table `sequences` has each
    columns = {"attribute": list(told), "value": list(told.values())}
    return parquet.table(PROVENANCE, {"model": model.slug} | columns)
