"""The words of the report: what classes, numbers and properties are called and look like.

One name for a class and for a number, wherever it is written.
"""

from collections.abc import Mapping
from typing import Any

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.magnitude import TYPES

Summary = Mapping[str, Any]
"""results/tables/summary.json."""


CLASSES = {
    "systematic": "systematic: most of the outlier mass is in features that fire at three quarters "
    "of the sites, or of one kind of them, in most sequences",
    "banded": "banded: most of the outlier mass is in features that fire at much the same part of "
    "the depth from sequence to sequence",
    "probabilistic": "probabilistic: most of the outlier mass is in features for whose sites "
    "no agreement beyond chance was found, at this number of sequences",
    "mixed": "mixed: features of two classes or more hold outlier mass, and none of these half",
    "indeterminate": "indeterminate: more sequences are needed to tell",
    "no_outliers": "without outlier features",
    "unclassified": "not classified: fewer than eight sequences",
    "out_of_reach": "out of reach: the threshold is more than half of what abs(z) can be in a "
    "model this narrow",
}

NUMBERS = {
    "extent_site_share": ("mean extent of the outlier features (share of the sites)", "z"),
    "sd_pair_share": ("share of positions at or above the threshold, over all sites", "z"),
    "n_dims_sequence": ("outlier features found in one sequence", "z"),
    "magnitude": ("largest abs(x) of an outlier feature in a sequence", "z"),
    "k90": ("fewest features with 90 % of the outlier values", "z"),
    "one_sided_share": ("share of the outlier features that are one-sided", "z"),
    "control_extent_share": ("control: extent of all features that are no candidates", "z"),
    "massive_ratio": ("largest abs(h) over the median of its block's output", "whole"),
    "residual_max": ("largest abs(h) of the residual stream", "whole"),
    "excess_kurtosis": ("excess kurtosis of a site, median over sites", "whole"),
    "int8_gain_db": ("gain of keeping outliers exact in 8 bits (dB)", "whole"),
    "router_entropy_share": ("entropy of a token's routing over its maximum", "whole"),
    "bits_per_byte_common": ("bits per byte of the text that all models share", "whole"),
}
"""The numbers of a model's section: the meaning of each, and its basis."""

POSITIONS = dict(zip(TYPES, ("position 0", "delimiters", "all other positions"), strict=True))
"""The types of position, in words."""

PROPERTIES = {
    "params_b": "the number of parameters",
    "active_b": "the number of active parameters",
    "experts": "the number of experts",
    "top_k": "the number of experts that a token is routed to",
    "layers": "the number of layers",
    "width": "the width",
    "bits_per_byte_common": "bits per byte",
}
"""Properties of models that numbers are correlated with: columns of their table, bits per byte."""


def glossary(criteria: Criteria) -> dict[str, str]:
    """Define what the report speaks of, in the order in which a reader needs it, by term.

    Args:
        criteria: with the thresholds that are set.
    """
    z, share = criteria.at("z"), f"{criteria.position_share:.0%}"
    return {
        "feature": "A dimension of the residual stream, by its number.",
        "site": "A norm's output: what enters a block's token mixer (attn_in) or its MLP (mlp_in).",
        "basis": "Whose size is asked for. z: the norm's own value, in root mean squares of the "
        "token; no rescaling of gains moves it. x: z behind the norm's gain, the rule of 2022; a "
        "gain and the weights behind it can be scaled against each other. y: z as what reads the "
        "site weighs it.",
        "alpha": f"The threshold of the abs value: {z:g} by z, {criteria.at('x'):g} by x.",
        "extent": "The share of the sites that fire. A feature fires at a site of a sequence where "
        f"its abs value is alpha or more at {share} of the positions.",
        "candidate": f"A feature with a mean extent of {criteria.layer_share:g} over all sites, or "
        "of three quarters over one kind of site.",
        "mass": "The outlier mass of a feature: its share of the values at alpha or more, at the "
        "sites where it fires.",
        "class": "What is known of where a candidate fires; that of a model is where its mass is. "
        "Systematic: at three quarters of the sites, or of one kind of site, in most sequences. "
        "Banded: at much the same sites from sequence to sequence. Probabilistic: no agreement "
        "beyond chance was found. Indeterminate, shift invariant: these sequences do not tell.",
        "kind": "How z comes to be large: constant (it hardly varies), wide (a large but ordinary "
        "Gaussian) or spiky (neither).",
        "relation": "In this checkpoint's parametrisation: both (a candidate by z and by x), "
        "absorbed (by z alone, the gain hides it), gain made (by x alone).",
        "consistency": "How alike the firing sites of two sequences are: the mean Jaccard index.",
        "tokens": "How frequent the tokens are that hold half of a feature's positions: near 0 it "
        "looks for certain tokens, near a half it does not look.",
    }


def features_said(number: int) -> str:
    """Write a number of features."""
    return f"{number:.0f} feature{'s' * (number != 1)}"


def interval(number: Mapping[str, Any], *, percent: bool = False) -> str:
    """Write a number with its interval."""
    if number["estimate"] is None:
        return "not defined"
    form = ".0%" if percent else ".3g"
    text = f"{number['estimate']:{form}}"
    if number.get("low") is not None:
        text += f" [{number['low']:{form}}, {number['high']:{form}}]"
    return text


def named(kind: str) -> str:
    """Write the name of a class in words."""
    return kind.replace("_", " ")


def listed(names: list[str]) -> str:
    """Write names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def models_of(summary: Summary) -> dict[str, Mapping[str, Any]]:
    """Return the models in the order of the table of models."""
    return dict(sorted(summary["models"].items(), key=lambda item: item[1]["number"]))
