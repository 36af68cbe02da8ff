"""What a sweep found, in sentences: each is made from the numbers of summary.json, and no other."""

from collections.abc import Iterator, Mapping
from typing import Any

from moe_outliers.metrics.values import METRICS

Summary = Mapping[str, Any]
"""results/tables/summary.json."""

CLASSES = {
    "systematic": "systematic: most of the outlier mass is in features that fire at three quarters "
    "of the sites or more in most sequences",
    "banded": "banded: most of the outlier mass is in features that fire at much the same part of "
    "the depth from sequence to sequence",
    "probabilistic": "probabilistic: most of the outlier mass is in features whose sites were not "
    "found to agree between sequences",
    "mixed": "mixed: no class of features holds half of the outlier mass",
    "gain_explained": "explained by gains: most of the outlier mass is in features that are large "
    "only behind a norm's gain",
    "indeterminate": "indeterminate: more sequences are needed to tell",
    "no_outliers": "without outlier features",
    "unclassified": "not classified: fewer than eight sequences",
}

NUMBERS = {
    "extent_site_share": ("mean extent of the outlier features (share of the sites)", "fires"),
    "sd_pair_share": ("share of positions at or above the threshold, over all sites", "fires"),
    "n_dims_sequence": ("outlier features found in one sequence", "fires"),
    "magnitude": ("largest abs(x) of an outlier feature in a sequence", "fires"),
    "k90": ("fewest features with 90 % of the outlier values", "x"),
    "one_sided_share": ("share of the outlier features that are one-sided", "fires"),
    "control_extent_share": ("control: extent of all features that are no candidates", "fires"),
    "residual_max": ("largest abs(h) of the residual stream", "whole"),
    "excess_kurtosis": ("excess kurtosis of a site, median over sites", "whole"),
    "int8_gain_db": ("gain of keeping outliers exact in 8 bits (dB)", "whole"),
    "router_entropy_share": ("entropy of a token's routing over its maximum", "whole"),
    "bits_per_byte_common": ("bits per byte of the text that all models share", "whole"),
}
"""The numbers of a model's page: what each is, and what fires."""

TYPES = {"first": "position 0", "delimiter": "delimiters", "other": "all other positions"}


def models_of(summary: Summary) -> dict[str, Mapping[str, Any]]:
    """Return the models in the order of the table of models."""
    return dict(sorted(summary["models"].items(), key=lambda item: item[1]["number"]))


def answer(summary: Summary) -> Iterator[str]:
    """Say which models are of which class, and how sure that is."""
    models = models_of(summary)
    kinds: dict[str, list[str]] = {}
    for model, found in models.items():
        kinds.setdefault(found["model_class"], []).append(model)
    sequences = sorted({found["sequences"] for found in models.values()})
    read = " or ".join(map(str, sequences))
    measured = "model was" if len(models) == 1 else "models were"
    yield f"{len(models)} {measured} measured on {read} sequences each."
    for kind, said in CLASSES.items():
        if names := kinds.get(kind):
            verb = "is" if len(names) == 1 else "are"
            yield f"{len(names)} {verb} {said}: {', '.join(names)}."
    yield from (how_sure(model, found) for model, found in models.items())


def how_sure(model: str, found: Mapping[str, Any]) -> str:
    """Say a model's class with the evidence for it."""
    kind = found["model_class"]
    label = kind.replace("_", " ")
    parts = [f"{model} is called {label}"]
    if mass := found["mass_shares"].get(kind):
        count = int(found["classes_of_features"][kind])
        features = "1 feature is" if count == 1 else f"{count} features are"
        parts.append(f"{features} {label}, with a share of the outlier mass of {interval(mass)}")
    extent = found["numbers"].get("extent_site_share", {}).get("fires")
    if extent and extent["estimate"] is not None:
        parts.append(f"mean extent of the outlier features {interval(extent)}")
    if stable := _range(found, "model_class", "alpha"):
        parts.append(f"the class is {stable}")
    return "; ".join(parts) + "."


def controls(found: Mapping[str, Any]) -> Iterator[str]:
    """Say what the controls of a model show."""
    expected, got = found["surrogate_n_dims"], found["candidates"]
    yield (
        f"{got} features pass by x; Gaussian activations behind the model's own gains would give "
        f"{expected}."
    )
    by = {name: found[f"class_{name}"].replace("_", " ") for name in ("x", "z")}
    yield f"By x alone the model would be {by['x']}, by z alone {by['z']}."
    for headline, said in (
        ("model_class", "The class"),
        ("n_dims_sequence", "The number of features"),
    ):
        for along, name in (
            ("alpha", "the threshold"),
            ("position_share", "the share of positions"),
        ):
            if stable := _range(found, headline, along):
                yield f"{said} along {name}: {stable}."


def differences(summary: Summary) -> Iterator[str]:
    """Say which differences between models survive the correction for their number."""
    kinds: dict[str, list[str]] = {}
    for row in summary["differences"]:
        meaning, basis = NUMBERS.get(row["metric"], (METRICS[row["metric"]].meaning, "fires"))
        if row["basis"] not in (basis, None):
            meaning += f", by {row['basis']}"
        said = f"{row['model_a']} less {row['model_b']} {interval(row)}"
        kinds.setdefault(meaning, []).append(said)
    for meaning, found in kinds.items():
        yield f"{meaning[0].upper()}{meaning[1:]}: {'; '.join(found)}."
    if not kinds:
        yield "No difference between two models survives Holm's correction over all pairs."


def legacy(found: Mapping[str, Any]) -> Iterator[str]:
    """Say a model's old numbers beside the corrected ones."""
    for row in found["legacy"]:
        if row["basis"] != "fires" or row["legacy"] is None:
            continue
        published = "" if row["published"] is None else f", published {row['published']:g}"
        corrected = (
            "none" if row["corrected"] is None else interval({**row, "estimate": row["corrected"]})
        )
        name = row["quantity"].replace("_", " ")
        yield f"{name}: old {row['legacy']:.3g} (biased{published}), corrected {corrected}."


def cross_batch(found: Mapping[str, Any]) -> str:
    """Say in one line how single sequences agree with all others."""
    rows = found["cross_batch"]
    alike = [row["jaccard"] for row in rows if row["jaccard"] is not None]
    if not alike:
        return "No sequence has a candidate, alone or in the others."
    counts = [row["n_dims"] for row in rows]
    return (
        f"Each of {len(rows)} sequences left out: {min(counts)} to {max(counts)} candidates of the "
        f"others are found in it; Jaccard index from {min(alike):.2f} to {max(alike):.2f}."
    )


def numbers(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Give a model's headline numbers: what each is, it with its interval, how it was made."""
    for metric, (meaning, basis) in NUMBERS.items():
        number = found["numbers"].get(metric, {}).get(basis)
        if number is None:
            continue
        yield meaning, interval(number), _method(number)
    for kind, number in found["type_shares"].items():
        yield f"share of positions at or above 6: {TYPES[kind]}", interval(number), _method(number)


def _method(number: Mapping[str, Any]) -> str:
    special = f" ({number['degenerate']})" if number["degenerate"] else ""
    return f"{number['method']}{special}"


def interval(number: Mapping[str, Any]) -> str:
    """Write a number with its interval."""
    if number["estimate"] is None:
        return "not defined"
    text = f"{number['estimate']:.3g}"
    if number.get("low") is not None:
        text += f" [{number['low']:.3g}, {number['high']:.3g}]"
    return text


def _range(found: Mapping[str, Any], headline: str, along: str) -> str:
    for row in found["stable_ranges"]:
        if (row["headline"], row["along"], row["basis"]) == (headline, along, "fires"):
            what = "alpha" if along == "alpha" else "position share"
            return (
                f"the same for {what} from {row['low']:g} to {row['high']:g} "
                f"(tried {row['tried_low']:g} to {row['tried_high']:g})"
            )
    return ""
