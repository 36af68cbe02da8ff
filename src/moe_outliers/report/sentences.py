"""The results of a sweep in sentences, made from the numbers of summary.json alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from moe_outliers.metrics.values import METRICS
from moe_outliers.report.conditions import measured, texts
from moe_outliers.report.words import (
    CLASSES,
    NUMBERS,
    POSITIONS,
    PROPERTIES,
    Summary,
    features_said,
    interval,
    listed,
    models_of,
    named,
)

DETECTOR = 0.1
"""A feature is called a token detector if the tokens that hold half of its positions are at most
this share of all; of one that does not look at the token they are a half."""

UNKNOWN = ("indeterminate", "unclassified", "out_of_reach")
"""Classes of a model of which it cannot be told whether it is systematic."""


def headline(summary: Summary) -> str:
    """Say which models are systematic: the question that comes first."""
    models = models_of(summary)
    kinds = {model: found["model_class"] for model, found in models.items()}
    names = [model for model, kind in kinds.items() if kind == "systematic"]
    unknown = [m for m, kind in kinds.items() if kind in UNKNOWN]
    if len(models) == 1:
        (model,) = models
        if unknown:
            return f"{model}: it cannot be told whether it is systematic."
        return f"{model} is {'' if names else 'not '}systematic."
    if len(unknown) == len(models):
        return f"It cannot be told for any of {len(models)} models whether it is systematic."
    if names:
        verb = "is" if len(names) == 1 else "are"
        said = f"{len(names)} of {len(models)} models {verb} systematic: {listed(names)}."
    else:
        said = f"None of {len(models)} models is systematic."
    return f"{said} It cannot be told for {listed(unknown)}." if unknown else said


def answer(summary: Summary) -> Iterator[str]:
    """Say which models are of which class, and how sure that is."""
    models = models_of(summary)
    yield headline(summary)
    yield from otherwise(summary)
    yield measured(summary)
    yield texts(summary)
    for kind, names in classes(summary).items():
        verb = "is" if len(names) == 1 else "are"
        yield f"{len(names)} {verb} {CLASSES[kind]}: {', '.join(names)}."
    yield from (how_sure(model, found) for model, found in models.items())


def otherwise(summary: Summary) -> Iterator[str]:
    """Name every model that x, and every model that y, puts in another class than z."""
    for basis, said in (
        ("x", "x, the rule of 2022, which a rescaling of gains and the weights behind them moves"),
        ("y", "y, which weighs features as the readers of a site do"),
    ):
        others = [
            f"{model} {named(found[f'class_{basis}'])}"
            for model, found in models_of(summary).items()
            if found[f"class_{basis}"] not in (None, found["model_class"])
        ]
        if others:
            yield f"Classes are by z, before any gain. By {said}, it would be: {listed(others)}."


def classes(summary: Summary) -> dict[str, list[str]]:
    """Return the classes that occur, in the order of CLASSES, with their models."""
    kinds: dict[str, list[str]] = {}
    for kind in CLASSES:
        for model, found in models_of(summary).items():
            if found["model_class"] == kind:
                kinds.setdefault(kind, []).append(model)
    return kinds


def evidence(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evidence for a model's class; None where there is none of a kind.

    Returns:
        `features`: how many are of the model's class; `mass`: the share of the outlier mass that
        they hold, with its interval; `extent`: of features that other sequences choose, with its
        interval, of a model that has candidates; `stable`: the thresholds around the one that is
        set at which the class is the same, of a model that has candidates; `change`: the nearest
        threshold at which it is another.
    """
    kind, some = summary["model_class"], summary["candidates"] > 0
    mass = summary["mass_shares"].get(kind)
    extent = summary["numbers"].get("extent_site_share", {}).get("z")
    return {
        "features": int(summary["classes_of_features"][kind]) if mass else None,
        "mass": mass,
        "extent": extent if some and extent and extent["estimate"] is not None else None,
        "stable": _stable(summary, "model_class", "alpha") if some else None,
        "change": summary["nearest_change"],
    }


def how_sure(model: str, summary: Mapping[str, Any]) -> str:
    """Say a model's class with the evidence for it: of all sequences, no held-out number."""
    label, shown = named(summary["model_class"]), evidence(summary)
    parts = [f"{model} is called {label}"]
    if summary["class_not_wide"] not in (None, summary["model_class"]):
        parts.append(f"without wide features it would be {named(summary['class_not_wide'])}")
    if summary["at_threshold"]:
        parts.append("it is at the threshold: its best feature may or may not be a candidate")
    if shown["mass"]:
        one = shown["features"] == 1
        noun, holds = ("feature is", "holds") if one else ("features are", "hold")
        mass = interval(shown["mass"], percent=True)
        parts.append(f"{shown['features']} {noun} {label} and {holds} {mass} of the outlier mass")
    parts += _beside(summary)
    if shown["stable"]:
        parts.append(f"the class is {_range(summary, 'model_class', 'alpha')}")
    if shown["change"]:
        change = shown["change"]
        parts.append(f"at {change['alpha']:g} it would be {named(change['model_class'])}")
    elif summary["model_class"] != "out_of_reach":
        parts.append("no threshold that was tried gives another class")
    return "; ".join(parts) + "."


def _beside(summary: Mapping[str, Any]) -> Iterator[str]:
    """Say what a class hides: systematic features of other models, and those of subsets alone."""
    number = summary["classes_of_features"].get("systematic") or 0
    if number and summary["model_class"] != "systematic":
        verb = "is" if number == 1 else "are"
        yield f"yet {features_said(number)} {verb} systematic"
    for name, some in summary["systematic_in"].items():
        if name != "all":
            verb = "is" if some == 1 else "are"
            yield f"{features_said(some)} {verb} so in {name.replace(',', ' and ')} alone"


def by_class(summary: Mapping[str, Any]) -> str:
    """Count a model's features by class, systematic ones by kind and by where they are so."""
    parts = []
    for name, number in summary["classes_of_features"].items():
        if not number:
            continue
        said = f"{number:.0f} {named(name)}"
        if name == "systematic":
            kinds = [
                f"{n} {kind}" + ", effect not measured" * (kind == "constant")
                for kind, n in summary["systematic_kinds"].items()
            ]
            some = [
                f"{n} in {where.replace(',', ' and ')} alone"
                for where, n in summary["systematic_in"].items()
                if where != "all"
            ]
            if told := [each for each in kinds if "not recorded" not in each] + some:
                said += f" ({', '.join(told)})"
        parts.append(said)
    return ", ".join(parts) or "none"


def controls(summary: Mapping[str, Any]) -> Iterator[str]:
    """Say what the controls of a model show."""
    yield (
        f"Candidates: {summary['candidates']} by z, {summary['candidates_x']} by x; Gaussian "
        f"activations behind the model's own gains would give {summary['surrogate_n_dims']} by x."
    )
    if summary["surrogate_wide"] is not None:
        yield (
            "Ordinary features of different sizes (a lognormal) would give "
            f"{summary['surrogate_wide']:.1f} by z."
        )
    relations = summary["relations"]
    yield (
        f"In this checkpoint's parametrisation {features_said(relations['both'])} pass by z and by "
        f"x; the gain hides {relations['absorbed']} and makes {relations['gain_made']}."
    )
    for row in summary["features"]:
        if row["token_half_share"] is not None and row["token_half_share"] <= DETECTOR:
            yield (
                f"Feature {row['feature']} is a token detector: half of the positions where it is "
                f"the largest have tokens that are {row['token_half_share']:.1%} of the text. "
                "Where it fires is the texts' doing."
            )
    by_y = named(summary["class_y"]) if summary["class_y"] else "not recorded"
    energy = named(summary["class_energy"]) if summary["class_energy"] else "not computed"
    yield (
        f"Class by x: {named(summary['class_x'])}; by y: {by_y}; by z at equal energy (at least "
        f"1/80 of a token's, threshold {summary['energy_alpha']:g}): {energy}."
    )
    if not summary["candidates"]:
        return
    for number, said in (
        ("model_class", "The class"),
        ("n_dims_sequence", "The number of features"),
    ):
        for along, name in (
            ("alpha", "the threshold"),
            ("position_share", "the share of positions"),
        ):
            if stable := _range(summary, number, along):
                yield f"{said} along {name}: {stable}."


def differences(summary: Summary) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Say of each number how many differences between models survive the correction.

    Yields:
        A sentence, and the rows of these pairs: model_a, model_b and the difference.
    """
    models = len(summary["models"])
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary["differences"]:
        kinds.setdefault(_meaning(row), []).append(row)
    for meaning, found in kinds.items():
        most = max(found, key=lambda row: abs(row["estimate"]))
        every = sum(max(row["above"], row["below"]) == row["n"] for row in found)
        yield (
            f"{meaning}: {len(found)} of {models * (models - 1) // 2} pairs differ, {every} of "
            f"them in the same direction on every text; most: {most['model_a']} less "
            f"{most['model_b']} {interval(most)}.",
            found,
        )


def undecidable(summary: Summary) -> str:
    """Name the numbers of which no difference could survive at this number of texts."""
    rows = summary["undecidable_differences"]
    if not rows:
        return ""
    names = dict.fromkeys(_meaning(row).lower() for row in rows)
    texts = " or ".join(str(n) for n in sorted({row["n"] for row in rows}))
    return (
        f"With {texts} texts no difference can survive the correction in "
        f"{'; '.join(names)}: that none is listed says nothing."
    )


def correlations(summary: Summary) -> Iterator[str]:
    """Say which numbers correlate with a property of the models, after the correction."""
    for row in summary["correlations"]:
        yield (
            f"{_meaning(row)} goes with {PROPERTIES[row['property']]}: rank correlation "
            f"{row['rho']:.2f} over {row['models']} models."
        )
    if summary["correlations"]:
        return
    tested = summary["correlations_tested"]
    if tested["decidable"]:
        yield (
            f"No number goes with a property of the models, after Holm's correction over "
            f"{tested['rows']} correlations; with {tested['models']} models one survives only "
            f"from abs(rho) = {tested['least_abs_rho']:.2f} on."
        )
    else:
        yield (
            f"{tested['models']} models are too few for any of {tested['rows']} correlations to "
            f"survive Holm's correction: that none is listed says nothing."
        )


def _meaning(row: Mapping[str, Any]) -> str:
    """Return the meaning of a metric as the start of a sentence, and its basis if unusual."""
    meaning, basis = NUMBERS.get(row["metric"], (METRICS[row["metric"]].meaning, "z"))
    other = "" if row["basis"] in (basis, None) else f", by {row['basis']}"
    return f"{meaning[0].upper()}{meaning[1:]}{other}"


def legacy(summary: Mapping[str, Any]) -> Iterator[str]:
    """Say a model's old numbers beside the corrected ones."""
    for row in summary["legacy"]:
        if row["basis"] != "z" or row["legacy"] is None:
            continue
        published = "" if row["published"] is None else f", published {row['published']:g}"
        corrected = (
            "none" if row["corrected"] is None else interval({**row, "estimate": row["corrected"]})
        )
        name = row["quantity"].replace("_", " ")
        yield f"{name}: old {row['legacy']:.3g} (biased{published}), corrected {corrected}."


def cross_batch(summary: Mapping[str, Any]) -> str:
    """Say in one sentence how well single sequences agree with all others."""
    rows = summary["cross_batch"]
    alike = [row["jaccard"] for row in rows if row["jaccard"] is not None]
    if not alike:
        return "No sequence has a candidate, alone or in the others."
    counts = [row["n_dims"] for row in rows]
    return (
        f"Each of {len(rows)} sequences left out: {min(counts)} to {max(counts)} candidates of the "
        f"others are found in it; Jaccard index from {min(alike):.2f} to {max(alike):.2f}."
    )


def numbers(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield a model's headline numbers: the meaning, the number with its interval, the method."""
    for metric, (meaning, basis) in NUMBERS.items():
        number = summary["numbers"].get(metric, {}).get(basis)
        if number is None:
            continue
        yield meaning, interval(number), _method(number)
    for kind, number in summary["type_shares"].items():
        meaning = f"share of positions at or above 6: {POSITIONS[kind]}"
        yield meaning, interval(number), _method(number)


def _method(number: Mapping[str, Any]) -> str:
    special = f" ({number['degenerate']})" if number["degenerate"] else ""
    said = f"{number['method']}{special}"
    if number["one_text_decides"]:
        said += f"; {number['one_text_decides']} decides it"
        if number["sure_low"] is not None:
            said += f"; betting [{number['sure_low']:.3g}, {number['sure_high']:.3g}]"
    return said


def _stable(summary: Mapping[str, Any], headline: str, along: str) -> Mapping[str, Any] | None:
    for row in summary["stable_ranges"]:
        if (row["headline"], row["along"], row["basis"]) == (headline, along, "z"):
            return row
    return None


def _range(summary: Mapping[str, Any], headline: str, along: str) -> str:
    row = _stable(summary, headline, along)
    if row is None:
        return ""
    what = "alpha" if along == "alpha" else "position share"
    return (
        f"the same for {what} from {row['low']:g} to {row['high']:g} "
        f"(tried {row['tried_low']:g} to {row['tried_high']:g})"
    )
