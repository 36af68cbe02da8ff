"""Every metric of the catalogue again from the activations, by loops, as docs/method.md has it."""

import itertools
import warnings
from collections import Counter
from math import ceil

import numpy as np
import pytest
from scipy import stats
from support import synthetic
from support.synthetic import Shape

from moe_outliers.metrics.classes import CLASSES
from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.measure import measure
from moe_outliers.metrics.values import KEYS, METRICS

S, B, D, T, E, PICKS = 9, 4, 40, 110, 5, 2
SHAPE = Shape(sequences=S, blocks=B, width=D, positions=T, experts=E, picks=PICKS, dense=1)
SITES = 2 * B
THRESHOLDS = {"z": 3.0, "x": 6.0}  # z is at most sqrt(D), and is asked up to half of it
TYPES = ("first", "delimiter", "other")
MEASURED = sorted(set(METRICS) - {"perplexity", "bits_per_byte_common"})  # of later steps


class Truth:
    """Activations of both signs behind gains and offsets, and the tables of the metrics."""

    def __init__(self):
        rng = np.random.default_rng(5)
        h = rng.standard_normal((S, SITES, T, D))
        large = 8 + 2 * rng.random(h.shape)
        for feature, share, sites in ((4, 0.5, 1), (7, 0.3, 1), (11, 0.3, 0.5), (20, 0.2, 0.35)):
            there = (rng.random(h.shape[:3]) < share) & (rng.random((S, SITES, 1)) < sites)
            h[..., feature] = np.where(there, large[..., feature], h[..., feature])
        h[..., 7] *= -1
        h[:, 4:, :, 12] = np.where(rng.random((S, 4, T)) < 0.2, -large[:, 4:, :, 12], 0)
        h[:, :, 0, 4] *= 10
        tokens = synthetic.tokens_of(SHAPE, 3)
        self.order = np.argsort(tokens["ids_sha256"].to_pylist())
        for s in self.order[1::2]:  # only where it is scored, not where it is chosen
            h[s, :7, ::3, 25] = 3 * large[s, :7, ::3, 25]
        self.z = (h / np.sqrt((h**2).mean(axis=3, keepdims=True))).astype(np.float32)
        self.gain = (1.3 + 0.3 * rng.standard_normal((SITES, D))).astype(np.float32)
        self.gain[:, 30], self.gain[:, 31] = 5, -4
        self.offset = (0.2 * rng.standard_normal((SITES, D))).astype(np.float32)
        self.x = self.z * self.gain[:, None] + self.offset[:, None]
        data = synthetic.reduce(self.x, self.z, self.gain, tokens, SHAPE, seed=9)
        data = data.assign(offset=(data.offset.dims, self.offset))
        data["route"][:, 0, :, 0] = 3  # an expert that all pick, and with it one that none does
        data["route"][:, 0, :, 1] = data["route"][:, 0, :, 1].clip(0, 2)
        data["expert_raw_max"][:] = rng.gamma(2, 1, (S, B - 1, E))
        data["expert_total"][0, 1, 1] = 0
        data["residual_max"][:, 1:] += 1000  # massive behind block 1, and from there on
        for name in ("feature", "position"):  # some largest outputs are where the residual's is
            top = data[f"residual_top_{name}"].values[:, 1:, 0]
            data[f"expert_max_{name}"][:, :, 1] = top
        self.tables = measure("m", data, tokens, Criteria(THRESHOLDS, 0.25, 0.06), 0)
        self.data = data.isel(sequence=self.order)
        self.x, self.z = self.x[self.order], self.z[self.order]
        self.ends = np.array(tokens["ends"].to_pylist())[self.order]
        delimiter = np.array(tokens["delimiter"].to_pylist())[self.order]
        first = np.broadcast_to(np.arange(T) == 0, (S, T))
        self.types = {"first": first, "delimiter": delimiter, "other": ~first & ~delimiter}
        self.features = self.tables["features"].to_pandas()

    def count(self, basis, alpha):
        return (np.abs(self.z if basis == "z" else self.x) >= alpha).sum(axis=2)

    def fires(self, basis, alpha=None, share=0.06):
        enough = max(1, ceil(share * T - 1e-9))
        return self.count(basis, alpha or THRESHOLDS[basis]) >= enough

    def outliers(self, basis):
        """Values at or above the threshold, at firing sites: (sequence, feature)."""
        alpha = THRESHOLDS[basis]
        return np.where(self.fires(basis), self.count(basis, alpha), 0).sum(axis=1)


@pytest.fixture(scope="module")
def truth():
    return Truth()


def _chosen(extent, sequences):
    return {d for d in range(D) if np.mean([extent[s][d] for s in sequences]) >= 0.25 - 1e-9}


def _fold(sequence, held_out):
    return [s for s in range(S) if (s % 4 == sequence % 4) == held_out]


def _held_out(extent, table, weights=None):
    """Average over the features that the other folds choose, sequence by sequence."""
    found = []
    for s in range(S):
        parts = []
        for d in _chosen(extent, _fold(s, held_out=False)):
            weight = 1
            if weights is not None:
                weight = sum(weights[o][d] for o in _fold(s, held_out=False))
            if not np.isnan(table[s][d]):
                parts.append((table[s][d], weight))
        total = sum(weight for _, weight in parts)
        found.append(sum(v * w for v, w in parts) / total if total else np.nan)
    return found


def _jaccard(one, other):
    union = (one | other).sum()
    return (one & other).sum() / union if union else 0


def _fewest(row):
    held = 0
    for number, count in enumerate(sorted(row, reverse=True), 1):
        held += count
        if held >= 0.9 * row.sum() - 1e-9:
            return number
    return np.nan


def _thresholds(truth):
    """What is computed at every threshold."""
    for alpha, share in itertools.product(SHAPE.alphas, (0.0, 0.01, 0.06, 0.25)):
        for basis in THRESHOLDS:
            keys = {"basis": basis, "alpha": alpha, "position_share": share}
            extent = truth.fires(basis, alpha, share).mean(axis=1)
            folds = [(_fold(k, held_out=False), _fold(k, held_out=True)) for k in range(4)]
            both = [_chosen(extent, train) & _chosen(extent, test) for train, test in folds]
            yield "n_dims", keys, np.mean([len(features) for features in both])
            chosen = [_chosen(extent, _fold(s, held_out=False)) for s in range(S)]
            passing = [sum(extent[s][d] >= 0.25 - 1e-9 for d in chosen[s]) for s in range(S)]
            yield "n_dims_sequence", keys, passing
            if any(chosen):
                yield "extent_site_share", keys, _held_out(extent, extent)
                pairs = truth.count(basis, alpha).mean(axis=1) / T
                yield "sd_pair_share", keys, _held_out(extent, pairs)
            else:
                yield "extent_site_share", keys, None
                yield "sd_pair_share", keys, None


def _bases(truth):
    """What is computed for each basis at the thresholds of the headline."""
    x, six = truth.x, np.abs(truth.x) >= 6
    up, down = (x >= 6).sum(axis=(1, 2)), (x <= -6).sum(axis=(1, 2))
    for basis, alpha in THRESHOLDS.items():
        keys = {"basis": basis, "alpha": alpha, "position_share": 0.06}
        fires, count = truth.fires(basis), truth.count(basis, alpha)
        extent = fires.mean(axis=1)

        def held_out(table, weights=None, extent=extent):
            return _held_out(extent, table, weights)

        blocks = np.array([fires[:, 2 * b : 2 * b + 2].any(axis=1) for b in range(B)])
        yield "extent_block_share", keys, held_out(blocks.mean(axis=0))
        yield "extent_mass_share", keys, held_out(extent, truth.outliers(basis))
        yield (
            "sd_firing_share",
            keys,
            held_out(np.nanmean(np.where(fires, count / T, np.nan), axis=1)),
        )
        yield "magnitude", keys, held_out(np.abs(x).max(axis=(1, 2)))
        yield "magnitude_z", keys, held_out(np.abs(truth.z).max(axis=(1, 2)))
        sided = np.abs(up - down) / np.where(up + down, up + down, np.nan)
        yield "one_sided_share", keys, held_out(np.where(np.isnan(sided), np.nan, sided >= 0.99))
        for kind, start in (("attn_in", 0), ("mlp_in", 1)):
            of_kind = held_out(fires[:, start::2].mean(axis=1))
            yield "extent_site_share", keys | {"kind": kind}, of_kind
        for mixer, sites in (("mlp", [1]), ("moe", [3, 5, 7])):
            of_mixer = held_out(fires[:, sites].mean(axis=1))
            yield "extent_site_share", keys | {"kind": "mlp_in", "mixer": mixer}, of_mixer
        for name, mask in truth.types.items():
            covered = [six[s][:, mask[s]].mean(axis=(0, 1)) for s in range(S)]
            yield "type_coverage_share", keys | {"token_type": name}, held_out(covered)
        yield "n_dims_alone", keys, (extent >= 0.25 - 1e-9).sum(axis=1)
        candidates = _chosen(extent, range(S))
        rest = [d for d in range(D) if d not in candidates]
        yield "control_extent_share", keys, extent[:, rest].mean(axis=1)
        pairs = [
            np.mean([_jaccard(a[:, d], b[:, d]) for a, b in itertools.combinations(fires, 2)])
            for d in candidates
        ]
        yield "consistency", keys, np.mean(pairs)
        for d in sorted(_chosen(extent, range(0, S, 2))):
            of_feature = keys | {"feature": d}
            yield "feature_extent_share", of_feature, extent[1::2, d]
            yield "feature_sd_pair_share", of_feature, (count / T)[1::2, :, d].mean(axis=1)
            yield "feature_magnitude", of_feature, np.abs(x[1::2, ..., d]).max(axis=(1, 2))


def _whole(truth):
    """What is of a sequence, or of the model, as a whole."""
    x, keys = truth.x, {"basis": "x", "alpha": 6.0, "position_share": 0.06}
    yield "x_abs_max", {}, np.abs(x).max(axis=(1, 2, 3))
    yield "z_abs_max", {}, np.abs(truth.z).max(axis=(1, 2, 3))
    by_x, by_z = truth.fires("x"), truth.fires("z", 6)
    yield "gain_free_share", keys, (by_x & by_z).sum((1, 2)) / by_x.sum((1, 2))
    for basis, alpha in THRESHOLDS.items():
        of_basis = keys | {"basis": basis, "alpha": alpha}
        mass = truth.outliers(basis)
        yield "k90", of_basis, [_fewest(row) for row in mass]
        label = truth.features["class" if basis == "z" else "class_x"].to_numpy()
        for name in (*CLASSES, "unclassified", "none"):
            held = mass[:, label == name].sum(axis=1) / mass.sum(axis=1)
            there = (label == name).any()
            yield "mass_share", of_basis | {"class": name}, held if there else 0.0
    large = np.abs(x) >= 5.984375
    layers, positions = large.any(axis=2).mean(axis=1), large.any(axis=1).mean(axis=1)
    chosen = (layers >= 0.25) & (positions >= 0.06)
    yield "legacy_count", {}, chosen.sum()
    yield "legacy_distinct", {}, chosen.any(axis=0).sum()
    for name, share in (("layer", layers), ("position", positions)):
        yield f"legacy_{name}_mean_share", {}, np.mean(share[chosen])
        yield f"legacy_{name}_median_share", {}, np.median(share[chosen])
    yield "legacy_magnitude", {}, np.abs(x).max(axis=(1, 2))[chosen].max()
    six = np.abs(x) >= 6
    chosen = [
        [d for d in range(D) if six[s, :, :, d].any(axis=1).mean() >= 0.25
         and large[s, :, :, d].any(axis=0).mean() >= 0.06]
        for s in range(S)
    ]  # fmt: skip
    yield "dettmers_n_dims", {}, [len(own) for own in chosen]
    for name, table in (("layer", six.any(axis=2).mean(axis=1)), ("position", positions)):
        found = [np.mean(table[s, own]) if own else np.nan for s, own in enumerate(chosen)]
        yield f"dettmers_{name}_share", {}, found
    nll = truth.data["token_nll"].values
    yield "nll", {}, nll.mean(axis=1)
    span = truth.ends[:, -1] - truth.ends[:, 0]
    yield "bits_per_byte", {}, nll.sum(axis=1) / np.log(2) / span


def _sites(truth):
    """What is computed site by site, and over the sites."""
    x, error = truth.x.astype(float), truth.data["int8_error"].values.astype(float)
    decibels = -10 * np.log10(error)
    shape = {
        "excess_kurtosis": stats.kurtosis(x.reshape(S, SITES, -1), axis=2),
        "token_excess_kurtosis": stats.kurtosis(x, axis=3).mean(axis=2),
        "site_rms": np.sqrt((x**2).mean(axis=(2, 3))),
        "int8_gain_db": decibels[..., 3] - decibels[..., 1],
    }
    for site in range(SITES):
        kind, mixer = (("attn_in", "attention"), ("mlp_in", "moe" if site > 1 else "mlp"))[site % 2]
        keys = {"site": site, "block": site // 2, "kind": kind, "mixer": mixer}
        for metric, table in shape.items():
            yield metric, keys, table[:, site]
        for place, scheme in enumerate(("tensor", "token", "zeropoint", "mixed")):
            yield "int8_error", keys | {"scheme": scheme}, error[:, site, place]
            yield "int8_sqnr_db", keys | {"scheme": scheme}, decibels[:, site, place]
            yield "int8_sqnr_db", {"scheme": scheme}, decibels[..., place].mean(axis=1)
        for name, mask in truth.types.items():
            largest = [np.abs(x[s, site][mask[s]]).max() for s in range(S)]
            yield "type_abs_max", keys | {"token_type": name}, largest
    for metric in ("excess_kurtosis", "token_excess_kurtosis"):
        yield metric, {}, np.median(shape[metric], axis=1)
    yield "int8_gain_db", {}, shape["int8_gain_db"].mean(axis=1)


def _blocks(truth):
    """What is computed block by block of the residual stream."""
    names = ("residual_max", "residual_median")
    largest, median = (truth.data[name].values.astype(float) for name in names)
    ratio = largest / median
    for b in range(B):
        yield "residual_max", {"block": b}, largest[:, b]
        yield "residual_median", {"block": b}, median[:, b]
        yield "massive_ratio", {"block": b}, ratio[:, b]
        growth = largest[:, b] / largest[:, b - 1] if b else [np.nan] * S
        yield "residual_growth", {"block": b}, growth
        massive = (largest[:, b] > 100) & (ratio[:, b] > 1000)
        yield "massive_2024_share", {"block": b}, massive
    yield "residual_max", {}, largest.max(axis=1)
    yield "massive_2024_share", {}, ((largest > 100) & (ratio > 1000)).any(axis=1)
    yield "massive_ratio", {}, ratio.max(axis=1)


def _outlier_tokens(truth, place, sequence):
    """The largest 1 % of the positions but the first, at the site that feeds the experts."""
    size = np.abs(truth.x[sequence, 2 * (place + 1) + 1]).max(axis=1)
    number = ceil(0.01 * (T - 1))
    return sorted(range(1, T), key=lambda t: (-size[t], t))[:number]


def _information(picks, tokens):
    is_token = np.isin(np.arange(1, T), tokens)
    bits = 0
    for expert, what in itertools.product(range(E), (True, False)):
        there, same = picks[1:] == expert, is_token == what
        both = (there & same).mean()
        bits += both * np.log2(both / there.mean() / same.mean()) if both else 0
    return bits


def _routers(truth):
    """What is computed block by block of the routers."""
    route = truth.data["route"].values
    tables = {}
    for place in range(B - 1):
        load = np.array(
            [[(route[s, place] == e).sum() / (T * PICKS) for e in range(E)] for s in range(S)]
        )
        tokens = [_outlier_tokens(truth, place, s) for s in range(S)]
        bits = [[_information(route[o, place, :, 0], tokens[s]) for o in range(S)]
                for s in range(S)]  # fmt: skip
        others = [np.mean([bits[s][o] for o in range(S) if o != s]) for s in range(S)]
        entropy = truth.data["router_entropy"].values[:, place].astype(float)
        size = np.abs(truth.x[:, 2 * (place + 1) + 1]).max(axis=2)
        tables[place + 1] = {
            "load_entropy_share": [stats.entropy(row) / np.log(E) for row in load],
            "load_cv": [row.std() / row.mean() for row in load],
            "load_max_ratio": [row.max() / row.mean() for row in load],
            "dead_experts": [sum(share == 0 for share in row) for row in load],
            "router_entropy": entropy,
            "router_entropy_share": entropy / np.log(E),
            "router_margin": truth.data["router_margin"].values[:, place],
            "route_information": [bits[s][s] - others[s] for s in range(S)],
            "outlier_token_share": (size >= 6).mean(axis=1),
        }
    for metric in tables[1]:
        for block, table in tables.items():
            yield metric, {"block": block}, table[metric]
        yield metric, {}, np.mean([table[metric] for table in tables.values()], axis=0)


@pytest.fixture(scope="module")
def recomputed(truth):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        parts = (_thresholds, _bases, _whole, _sites, _blocks, _routers)
        rows = [row for part in parts for row in part(truth)]
    return {(metric, frozenset(keys.items())): values for metric, keys, values in rows}


@pytest.fixture(scope="module")
def measured(truth):
    frame = truth.tables["values"].to_pandas()
    place = {s: at for at, s in enumerate(truth.tables["sequences"]["sequence"].to_pylist())}
    found = {}
    for row in frame.to_dict("records"):
        keys = frozenset(
            (k, row[k]) for k in KEYS if k != "metric" and row[k] == row[k] and row[k] is not None
        )
        at = -1 if np.isnan(row["sequence"]) else place[row["sequence"]]
        found.setdefault((row["metric"], keys), {})[at] = row["value"]
    return {key: [values[at] for at in sorted(values)] for key, values in found.items()}


@pytest.mark.parametrize("metric", MEASURED)
def test_every_value_of_the_metric_is_what_the_activations_give(recomputed, measured, metric):
    keys = {key for key in measured if key[0] == metric}
    assert keys == {key for key in recomputed if key[0] == metric}
    for key in keys:
        wanted = np.atleast_1d(np.array(recomputed[key], dtype=float))
        assert np.allclose(measured[key], wanted, rtol=2e-6, atol=1e-9, equal_nan=True), key


def _sizes(truth, d):
    """What the table of features says of how large a feature is, and why."""
    x, z = truth.x[..., d].astype(float), truth.z[..., d].astype(float)
    gain, offset = (side[:, d].astype(float) for side in (np.abs(truth.gain), truth.offset))
    there, by_z = truth.fires("x")[..., d], truth.fires("z")[..., d]
    signed = np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)[..., 0]
    rms = np.sqrt((truth.x.astype(float) ** 2).mean(axis=(2, 3)))
    sequence, site, position = np.unravel_index(np.abs(x).argmax(), x.shape)
    chance = stats.norm.sf((6 - offset) / gain) + stats.norm.cdf((-6 - offset) / gain)
    spread = np.abs(truth.gain.astype(float))
    distance = (gain - spread.mean(axis=1)) / spread.std(axis=1)
    quartiles = np.quantile(signed[there], (0.25, 0.5, 0.75)) if there.any() else [np.nan] * 3
    named = zip(("magnitude_q25", "magnitude_median", "magnitude_q75"), quartiles, strict=True)
    up, down = (x >= 6).sum(), (x <= -6).sum()
    return dict(named) | {
        "magnitude_rms": np.median((np.abs(signed) / rms)[there]),
        "z_median": np.median(np.abs(z).max(axis=2)[by_z]) if by_z.any() else np.nan,
        "largest": x[sequence, site, position],
        "largest_site": site,
        "largest_z": np.abs(z).max(),
        "one_sidedness": abs(up - down) / (up + down) if up + down else np.nan,
        "gain_median": np.median(gain),
        "gain_z_score": np.median(distance),
        "log2_gain_at_largest": np.log2(gain[site]),
        "log2_z_at_largest": np.log2(abs(z[sequence, site, position])),
        "surrogate_coverage_share": chance.mean(),
        "surrogate_extent_share": stats.binom.sf(ceil(0.06 * T) - 1, T, chance).mean(),
    }


def _depth(truth, d):
    """What the table of features says of where and how consistently a feature fires."""
    fires, count = truth.fires("z")[..., d], truth.count("z", THRESHOLDS["z"])
    extent = fires.mean(axis=1)
    often = fires.mean(axis=0)
    usual = np.flatnonzero(often >= 0.5)
    mass, by_x = (
        held / held.sum(axis=1)[:, None] for held in (truth.outliers(b) for b in THRESHOLDS)
    )
    error = extent.std(ddof=1) / np.sqrt(S)
    above = int((extent >= 0.75 - 1e-9).sum())
    blocks = np.stack([fires[:, 0::2], fires[:, 1::2]]).any(axis=0)
    return {
        "extent_share": extent.mean(),
        "x_extent_share": truth.fires("x")[..., d].mean(),
        "extent_block_share": blocks.mean(),
        "sequences_above": above,
        "sign_p": stats.binomtest(above, S, 0.5, alternative="greater").pvalue,
        "extent_upper_share": min(1, extent.mean() + stats.t.ppf(0.975, S - 1) * error),
        "consistency": np.mean([_jaccard(*pair) for pair in itertools.combinations(fires, 2)]),
        "mass_share": mass[:, d].mean(),
        "x_mass_share": by_x[:, d].mean(),
        "sd_pair_share": count[..., d].mean() / T,
        "sd_firing_share": np.nanmean(
            [count[s, fires[s], d].mean() / T if fires[s].any() else np.nan for s in range(S)]
        ),
        "onset_site": usual[0] if len(usual) else np.nan,
        "offset_site": usual[-1] if len(usual) else np.nan,
        "band_fill_share": often[usual[0] : usual[-1] + 1].mean() if len(usual) else np.nan,
        "folds_chosen": sum(
            d in _chosen(truth.fires("z").mean(axis=1), _fold(k, held_out=False)) for k in range(4)
        ),
    }


def test_every_feature_is_described_as_the_activations_give(truth):
    for d in range(D):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            wanted = _sizes(truth, d) | _depth(truth, d)
        found = truth.features.loc[d, list(wanted)].astype(float)
        near = np.isclose(found, list(wanted.values()), rtol=1e-5, atol=1e-4, equal_nan=True)
        assert near.all(), (d, found[~near].to_dict(), wanted)
    assert {"banded", "probabilistic", "none"} <= set(truth.features["class"])


def test_the_relation_says_by_which_basis_a_feature_is_a_candidate(truth):
    by = {basis: _chosen(truth.fires(basis).mean(axis=1), range(S)) for basis in THRESHOLDS}
    relations = {"both": by["z"] & by["x"], "absorbed": by["z"] - by["x"],
                 "gain_made": by["x"] - by["z"]}  # fmt: skip
    for name, wanted in relations.items():
        found = truth.features.loc[truth.features["relation"] == name, "feature"]
        assert set(found) == wanted, name
    assert relations["both"]
    assert relations["gain_made"]
    assert truth.features["felt"].isna().all()  # y is not recorded here
    assert truth.features["class_y"].isna().all()


def _super_experts(truth, raw_max):
    """The rule as the published code has it: first the blocks, then percentile and maximum."""
    names = ("residual_max", "residual_median")
    largest, median = (truth.data[name].values.astype(float) for name in names)
    often = ((largest > 100) & (largest > 1000 * median)).mean(axis=0) >= 0.5
    pool = {
        (block, e): raw_max[block - 1, e] for block in range(1, round(0.75 * B)) for e in range(E)
    }
    values = np.array(list(pool.values()))
    enough = max(np.percentile(values, 99.5), values.max() // 10)
    formed = [b for b in range(B) if often[b] and not (b and often[b - 1])]
    return {place for place, value in pool.items() if value > enough and place[0] in formed}


def test_every_expert_is_described_as_the_routes_and_outputs_give(truth):
    route = truth.data["route"].values
    names = ("expert_max", "expert_total", "expert_raw_max")
    written, total, raw = (truth.data[name].values.astype(float) for name in names)
    raw_max = raw.max(axis=0)
    supers = _super_experts(truth, raw_max)
    assert supers
    for row in truth.tables["experts"].to_pylist():
        place, e = row["block"] - 1, row["expert"]
        picked = (route[:, place] == e).any(axis=2)
        tokens = [_outlier_tokens(truth, place, s) for s in range(S)]
        large = np.abs(truth.x[:, 2 * row["block"] + 1]).max(axis=2) >= 6
        large[:, 0] = False
        often = picked[:, 1:].mean()
        hits = np.mean([picked[s, tokens[s]] for s in range(S)])
        there = np.ones(S, dtype=bool)
        for name in ("feature", "position"):
            top = truth.data[f"residual_top_{name}"].values[:, row["block"], 0]
            there &= truth.data[f"expert_max_{name}"].values[:, place, e] == top
        there &= total[:, place, e] != 0
        share = written[there, place, e] / total[there, place, e]
        wanted = {
            "load_share": (route[:, place] == e).mean(),
            "load_ratio": (route[:, place] == e).mean() * E,
            "first_share": picked[:, 0].mean(),
            "lift": hits / often if often else None,
            "lift_magnitude": picked[large].mean() / often if often else None,
            "largest": written[np.abs(written[:, place, e]).argmax(), place, e],
            "abs_max_mean": np.abs(written[:, place, e]).mean(),
            "raw_abs_max": raw_max[place, e],
            "super_expert": (row["block"], e) in supers,
            "jump_share": np.median(share) if len(share) else None,
            "jump_sequences": sum(there),
        }
        found = {name: row[name] for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-6), row
    assert sum(row["lift"] is None for row in truth.tables["experts"].to_pylist()) == 1


def test_the_evidence_for_a_lift_is_that_of_permuted_sequences(truth):
    route, rows = truth.data["route"].values, truth.tables["experts"].to_pandas()
    rng = np.random.default_rng(1)
    for row in rows.dropna(subset="lift").to_dict("records"):
        place = row["block"] - 1
        picked = (route[:, place] == row["expert"]).any(axis=2)
        tokens = [_outlier_tokens(truth, place, s) for s in range(S)]
        met = np.array([[picked[o][tokens[s]].sum() for o in range(S)] for s in range(S)])
        centre = met.sum() / S
        null = [met[np.arange(S), rng.permutation(S)].sum() - centre for _ in range(2000)]
        p = np.mean(np.abs(null) >= abs(np.trace(met) - centre) - 1e-9)
        assert row["lift_p"] == pytest.approx(p, abs=0.05), row
    made = rows["lift_p"].notna()
    wanted = stats.false_discovery_control(rows.loc[made, "lift_p"])
    assert rows.loc[made, "lift_q"].to_numpy() == pytest.approx(wanted)


def test_the_tokens_of_a_feature_are_counted_site_by_site_and_position_by_position(truth):
    """Against loops over every site and position, with the ids of the tokens file."""
    tokens = synthetic.tokens_of(SHAPE, 3)
    ids = np.array(tokens["ids"].to_pylist())[truth.order]
    rows = truth.tables["feature_tokens"].to_pandas()
    top, largest = np.abs(truth.x).argmax(axis=3), np.abs(truth.x).max(axis=3)
    known = truth.features.dropna(subset="token_positions")
    assert len(known) == min(24, truth.features["relation"].notna().sum()) > 3
    for d in known.index:
        hits = [
            (ids[s, t], s) for s in range(S) for p in range(SITES) for t in range(T)
            if top[s, p, t] == d and largest[s, p, t] >= 6
        ]  # fmt: skip
        assert known.loc[d, "token_positions"] == len(hits)
        counts = Counter(token for token, _ in hits)
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        own = rows[rows["feature"] == d]
        assert own["id"].tolist() == ranked[:5]
        for row in own.itertuples():
            assert row.positions_share == pytest.approx(counts[row.id] / len(hits))
            assert row.frequency_share == pytest.approx((ids == row.id).mean())
            assert row.sequences == len({s for token, s in hits if token == row.id})
        held, frequency = 0, 0.0
        for token in ranked:
            if held >= len(hits) / 2:
                break
            held, frequency = held + counts[token], frequency + (ids == token).mean()
        if hits:
            assert known.loc[d, "token_half_share"] == pytest.approx(frequency)


def test_the_profile_is_that_of_the_heaviest_features(truth):
    rows = truth.tables["profile"].to_pandas()
    mass = truth.features.sort_values("mass_share", ascending=False, kind="stable")
    assert rows["feature"].unique().tolist() == mass["feature"].head(24).tolist()
    by_x, by_z = truth.count("x", 6) / T, truth.count("z", THRESHOLDS["z"]) / T
    for row in rows.to_dict("records"):
        site, d = row["site"], row["feature"]
        x, z = truth.x[:, site, :, d].astype(float), truth.z[:, site, :, d]
        signed = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
        gain, offset = (float(side[site, d]) for side in (truth.gain, truth.offset))
        types = {
            f"{name}_abs_max": np.median([np.abs(x[s][mask[s]]).max() for s in range(S)])
            for name, mask in truth.types.items()
        }
        quartiles = np.quantile(signed, (0.25, 0.5, 0.75))
        wanted = (
            types
            | dict(zip(("x_q25", "x_median", "x_q75"), quartiles, strict=True))
            | {
                "block": site // 2,
                "coverage_share": by_z[:, site, d].mean(),
                "x_coverage_share": by_x[:, site, d].mean(),
                "fires_sequence_share": truth.fires("z")[:, site, d].mean(),
                "x_fires_sequence_share": truth.fires("x")[:, site, d].mean(),
                "x_lowest": np.median(x.min(axis=1)),
                "x_highest": np.median(x.max(axis=1)),
                "x_largest": signed[np.abs(signed).argmax()],
                "z_largest": np.abs(z).max(),
                "gain": gain,
                "bound": np.sqrt(D) * abs(gain) + abs(offset),
            }
        )
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-6), row


@pytest.mark.parametrize("basis", THRESHOLDS)
def test_each_sequence_is_left_out_in_turn(truth, basis):
    extent = truth.fires(basis).mean(axis=1)
    rows = truth.tables["cross_batch"].to_pandas().query(f"basis == '{basis}'")
    for s, row in enumerate(rows.to_dict("records")):
        others = [o for o in range(S) if o != s]
        chosen, alone = _chosen(extent, others), _chosen(extent, [s])
        union = sorted(chosen | alone)
        ranks = stats.spearmanr(extent[s, union], extent[others][:, union].mean(axis=0)).statistic
        wanted = {
            "chosen": len(chosen),
            "alone": len(alone),
            "n_dims": len(chosen & alone),
            "extent_share": np.mean([extent[s, d] for d in chosen]),
            "jaccard": len(chosen & alone) / len(union),
            "spearman": ranks if len(union) > 2 else np.nan,
        }
        assert {k: row[k] for k in wanted} == pytest.approx(wanted, nan_ok=True), (s, row)
