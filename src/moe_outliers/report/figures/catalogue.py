"""All figures: title, caption, and the tables that each is drawn from. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One figure.

    Attributes:
        title: its heading.
        caption: what it shows and how to read it, in reStructuredText; `captions.caption` fills in
            the thresholds.
        tables: the tables that it is drawn from, by name.
        module: where its function is, in this package; the function has the figure's name.
        section: its section of the report.
        of_models: whether it shows models; then each is drawn, or named as not shown.
    """

    title: str
    caption: str
    tables: tuple[str, ...]
    module: str
    section: str = "Comparison"
    of_models: bool = True


FIGURES = {
    "extent_by_size": Entry(
        "Extent and sequence share against size and bits per byte",
        "Above: the share of the sites at which the outlier features of a model fire by z (M3). "
        "Below: the share of positions at or above the threshold, over all sites (M4). Bars are "
        "intervals over sequences. Filled: all parameters; open: those that one token uses. Grey "
        "crosses: dense models, table 4 of Dettmers et al. 2022, whose numbers are of other units: "
        "a layer counts with any value of 6 in the input of a linear map, the output projection's, "
        "which is not measured here, among them.",
        ("intervals", "models", "published"),
        "overview",
    ),
    "forest": Entry(
        "Every model with its intervals, and paired differences",
        "Means over sequences with their intervals; below, differences of two models on the same "
        "texts (interval: Student's t). A filled mark survives Holm's correction over all pairs at "
        "{level} (sign-flip test over texts); a mark without a bar is the same on every text, and "
        "has no interval.",
        ("intervals", "differences", "models"),
        "overview",
    ),
    "consistency": Entry(
        "Extent against consistency of the outlier features",
        "Each mark is a candidate by z: how much of the depth it fires at, and how alike the sites "
        "are from sequence to sequence (mean Jaccard index, M5). The area is its share of the "
        "outlier mass, the shape its class. Lines: the thresholds of a candidate ({layer_share}) "
        "and of a systematic feature ({systematic}).",
        ("features", "models"),
        "overview",
    ),
    "legacy_slopes": Entry(
        "From the old numbers to the corrected ones",
        "Left in each panel: the old system's number on the same statistics, which is biased; "
        "right: the corrected number by z, with its interval where it has one; of positions that "
        "over the sites at which a feature fires (M4), the old one's counterpart. docs/legacy.md "
        "says what each fault does.",
        ("legacy", "models"),
        "overview",
    ),
    "thresholds": Entry(
        "How the answer depends on the threshold",
        "Number of outlier features (M12) and their extent (M3) as the threshold moves; left for "
        "z, which no gain moves, as far as it can be for the width; right for x. Dotted: what "
        "Gaussian activations behind the model's own gains would give. The vertical line is the "
        "threshold of the headline, the ticks are those that are stored.",
        ("sensitivity", "intervals", "models"),
        "overview",
    ),
    "features_by_site": Entry(
        "Where each outlier feature fires",
        "Rows: the features with most outlier mass, at most 24, by class and onset; columns: sites "
        "in order of the forward pass. The shade is the share of positions at or above the "
        "threshold by z (M1). Right of each row: the class (S systematic, B banded, P "
        "probabilistic, I indeterminate, V shift-invariant, a dot for no candidate), the sign of "
        "x (both where it is not one-sided), and the share of the sites at which it fires by x.",
        ("profile", "features", "models"),
        "depth",
        "Depth",
    ),
    "residual": Entry(
        "The residual stream by block",
        "Largest and median absolute value of the residual stream behind each block, mean over "
        "sequences. The triangle marks the first block with massive activations (over 100, and "
        "over 1,000 times the median of the block's output; Sun et al. 2024) in at least half of "
        "the sequences. "
        "A circle: in at least half the largest value is at position 0; a cross: at a delimiter.",
        ("intervals", "blocks", "models"),
        "depth",
        "Depth",
    ),
    "magnitude_by_site": Entry(
        "Magnitude of the first feature by site",
        "The feature with most outlier mass by z: its largest (solid) and its smallest x (dashed) "
        "in a sequence, median over sequences, and the largest value of all (dots). Dotted: what "
        "the norm allows at most, sqrt(width) times its gain; a value on that line is one "
        "position saturating the norm.",
        ("profile", "models"),
        "depth",
        "Depth",
    ),
    "kurtosis": Entry(
        "Kurtosis of the norms' outputs by depth",
        "Kurtosis over positions and features at each site (3 for a Gaussian, dotted), "
        "logarithmic. Depth is the block's number over the last one's.",
        ("intervals", "models"),
        "depth",
        "Depth",
    ),
    "rounding": Entry(
        "Rounding to 8 bits by depth",
        "Signal to noise of x rounded to 8 bits at each site, by scheme; higher is better. The "
        "number above each panel is what keeping every feature exact that has one abs(x) of 6 "
        "gains over scaling by token, mean over sites, with its interval.",
        ("intervals", "models"),
        "depth",
        "Depth",
    ),
    "experts": Entry(
        "What each expert writes",
        "Left: largest absolute weighted output, mean over sequences, logarithmic; a ring marks "
        "a writer, the expert that makes the residual stream's maximum, a square a super expert by "
        "the rule of Su et al. 2025; without either these are the largest expert outputs. "
        "Middle: load, relative to equal loads. Right: lift, how "
        "much more often an expert is picked at outlier tokens; white: never picked there, or at "
        "all. Rows: blocks; columns: experts.",
        ("experts", "models"),
        "routing",
        "Experts",
    ),
    "routing": Entry(
        "Routing by depth, and its association with outliers",
        "Entropy of a token's routing distribution over its maximum; spread of the loads; and the "
        "lift of every expert against the evidence for it (permutation test over sequences, "
        "Benjamini-Hochberg within a model; the line is q = {level}; an expert that no outlier "
        "token picks stands at the left edge).",
        ("intervals", "experts", "models"),
        "routing",
        "Experts",
    ),
    "stability": Entry(
        "Do two halves of the sequences agree?",
        "Jaccard index of the candidates of two random halves, over random splits: median, "
        "quartiles, range. 1: the same features. A model without candidates by z has no mark.",
        ("stability", "models"),
        "overview",
        "Controls",
    ),
    "coverage": Entry(
        "Measured coverage of the intervals",
        "How often an interval holds the truth on simulated data, by number of sequences; bars: "
        "plus and minus three standard errors of the simulation. The line is the nominal level. "
        "The methods that this report uses are solid; the betting interval is that of shares. No "
        "interval is valid for texts that depend on each other.",
        ("validate_coverage",),
        "coverage",
        "Controls",
        of_models=False,
    ),
}

OLD = {"layer": "layer share", "position": "sequence share"}

for _size, _column in (("total", "params_b"), ("active", "active_b")):
    for _mean in ("mean", "median"):
        for _what, _name in OLD.items():
            FIGURES[f"legacy_{_size}_{_mean}_{_what}_share"] = Entry(
                f"Old {_mean} {_name} against {_size} parameters",
                "The old system's number, biased (docs/legacy.md), on an axis from 0 to 1.",
                ("intervals", "models"),
                "old_system",
                "Legacy",
            )
"""All figures by name, in the order of the report."""
