"""Classes of features and models on planted truth, and on degenerate data."""

import numpy as np
import pytest
from scipy import stats
from support.snake import ROOT

from moe_outliers.inference import simulate_classes
from moe_outliers.inference.simulate_classes import Truth
from moe_outliers.metrics import classes
from moe_outliers.metrics.classes import classify, kind_of, model_class, subsets_of
from moe_outliers.metrics.consistency import Shifts
from moe_outliers.metrics.counts import at_firing
from moe_outliers.storage.statistics_file import KINDS


def _classify(fires, seed=0, permutations=999, period=1, mixer=("attention", "moe")):
    blocks = fires.shape[1] // 2
    return classify(
        fires,
        layer_share=0.25,
        subsets=subsets_of(np.tile(KINDS, blocks), np.resize(mixer, 2 * blocks)),
        shifts=Shifts.draw(fires, period, np.random.default_rng(seed), permutations),
    )


def _labels(truth, n, features=200, seed=0):
    return _classify(
        simulate_classes.plant(truth, n, features, np.random.default_rng([seed, n]))
    ).label


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("extent", [1.0, 0.95])
def test_systematic_features_are_called_systematic_at_extent_one_too(n, extent):
    assert (_labels(Truth("systematic", extent), n) == "systematic").all()


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("extent", [0.3, 0.4, 0.5, 0.6, 0.68])
def test_banded_features_are_called_banded(n, extent):
    labels = _labels(Truth("banded", extent), n)
    assert (labels == "banded").mean() >= (1 if extent < 0.65 else 0.95)
    assert set(labels) <= {"banded", "indeterminate"}


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("extent", [0.3, 0.45, 0.6])
def test_features_at_random_sites_are_hardly_ever_systematic_or_banded(n, extent):
    labels = _labels(Truth("random", extent), n, features=400)
    assert np.isin(labels, ["systematic", "banded"]).mean() <= 0.10
    assert np.isin(_labels(Truth("run", 0.4), n), ["systematic", "banded"]).mean() <= 0.10


@pytest.mark.parametrize("n", [8, 16])
def test_a_mild_trend_over_depth_is_never_banded(n):
    assert "banded" not in _labels(Truth("trend", 0.45), n)


@pytest.mark.parametrize("n", [8, 16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_of_one_kind_of_site_in_every_block_is_systematic_there(n, kind):
    """It fires at every such site of every sequence: there is nothing more regular."""
    fires = np.zeros((n, 96, 1), dtype=bool)
    fires[:, KINDS.index(kind) :: 2] = True
    found = _classify(fires)
    assert (found.label[0], found.where[0]) == ("systematic", kind)
    assert _classify(fires[:, :, [0, 0, 0]]).label.tolist() == ["systematic"] * 3


def test_features_of_some_of_a_kinds_sites_are_not_systematic_in_it():
    found = _classify(simulate_classes.plant(Truth("some_mlp_in", 0.3), 16, 200,
                                             np.random.default_rng(0)))  # fmt: skip
    assert "systematic" not in found.label
    assert set(found.where) == {""}


def test_an_eighth_of_the_sites_is_a_subset_of_its_own():
    """Full attention in one of four blocks: those sites are far below a quarter of all."""
    fires = np.zeros((16, 96, 2), dtype=bool)
    fires[:, 6::8, 0] = True
    fires[:, 6::16, 1] = True  # half of them: no candidate
    mixer = ["linear_attention", "moe"] * 3 + ["attention", "moe"]
    found = _classify(fires, period=4, mixer=mixer)
    assert found.label.tolist() == ["systematic", "none"]
    assert found.where[0] == "attention"


def test_subsets_are_kinds_and_mixers_the_largest_first_each_once():
    kind = np.tile(KINDS, 8)
    named = {
        ("attention", "moe"): ["attn_in", "mlp_in"],  # each mixer is a kind
        ("linear_attention", "moe") * 3 + ("attention", "moe"): [
            "attn_in", "mlp_in", "linear_attention",
        ],  # two sites of full attention are too few
    }  # fmt: skip
    for mixer, wanted in named.items():
        assert list(subsets_of(kind, np.resize(mixer, 16))) == wanted


@pytest.mark.parametrize("n", [8, 11, 16])
def test_subsets_are_those_that_holm_rejects(n):
    """The correction by its definition, subset by subset, on features near the border."""
    rng = np.random.default_rng(n)
    kind, mixer = (
        np.tile(KINDS, 24),
        np.resize(["sliding_attention", "moe", "attention", "mlp"], 48),
    )
    subsets = subsets_of(kind, mixer)
    assert len(subsets) == 6
    level = rng.uniform(0.4, 1.0, (4, 300)).repeat(12, axis=0).reshape(4, 12, 300)
    chance = np.empty((48, 300))
    for place in range(4):
        chance[place::4] = level[place]
    fires = rng.random((n, 48, 300)) < chance
    found = _classify(fires, mixer=["sliding_attention", "moe", "attention", "mlp"], period=2)
    several = 0
    for d in range(300):
        if found.where[d] == "all" or found.label[d] == "none":
            continue
        p = {}
        for name, sites in subsets.items():
            above = int((fires[:, sites, d].mean(axis=1) >= 0.75).sum())
            p[name] = stats.binomtest(above, n, 0.5, alternative="greater").pvalue
        rejected = []
        for left, name in enumerate(sorted(p, key=p.get)):
            if p[name] > 0.025 / (len(p) - left):
                break
            rejected.append(name)
        assert found.where[d] == ",".join(name for name in subsets if name in rejected), d
        several += len(rejected) > 1
    assert several or n == 8


def test_subsets_are_not_tested_where_so_few_sequences_could_reject_none():
    fires = np.zeros((8, 96, 1), dtype=bool)
    fires[:, 1::2] = True
    subsets = {f"s{i}": np.roll(np.arange(96) % 2 == 1, 0) for i in range(7)}  # 7 / 256 > .025
    shifts = Shifts.draw(fires, 1, np.random.default_rng(0), 99)
    found = classify(fires, layer_share=0.25, subsets=subsets, shifts=shifts)
    assert (found.subsets, found.where[0]) == (0, "")
    assert found.label[0] == "shift_invariant"


def test_what_a_shift_cannot_tell_apart_has_a_class_of_its_own():
    """Sites that every shift maps onto themselves: J and its expectation are 1 alike."""
    fires = np.zeros((16, 96, 1), dtype=bool)
    fires[:, 1::4] = True  # a quarter of the sites, every second MLP
    found = _classify(fires, period=2)
    assert found.label[0] == "shift_invariant"
    assert np.isnan(found.kappa[0])
    assert np.isnan(found.q[0])
    held = _held(shift_invariant=1.0)
    assert model_class(held, found.label) == "indeterminate"


def test_an_extent_near_the_border_is_indeterminate_or_systematic_never_wrong():
    labels = _labels(Truth("systematic", 0.8), 8)
    assert set(labels) <= {"systematic", "indeterminate"}


def test_thirteen_of_sixteen_sequences_make_a_feature_systematic_and_twelve_do_not():
    fires = np.ones((16, 48, 2), dtype=bool)
    fires[:3, 24:, 0] = False
    fires[:4, 24:, 1] = False
    found = _classify(fires)
    assert found.above.tolist() == [13, 12]
    assert found.label.tolist() == ["systematic", "indeterminate"]


def test_the_sequences_that_the_documentation_asks_for_are_those_of_the_sign_test():
    told = (ROOT / "docs/method.md").read_text()
    for n in (8, 16, 24, 32):
        p = stats.binom.sf(np.arange(-1, n), n, 0.5)
        needed = int(np.argmax(p <= classes.SIGN_LEVEL))
        assert f"{needed} of {n}" in " ".join(told.split()), (needed, n)


def test_fewer_than_eight_sequences_leave_candidates_without_a_class():
    fires = np.ones((7, 48, 2), dtype=bool)
    fires[:, :, 1] = False
    found = _classify(fires)
    assert found.label.tolist() == ["unclassified", "none"]
    assert model_class({}, found.label) == "unclassified"


def test_too_few_blocks_for_the_test_leave_a_feature_indeterminate():
    fires = np.zeros((8, 2, 1), dtype=bool)
    fires[:5, 0], fires[5:, 1] = True, True  # one of two sites, not always the same
    shifts = Shifts.draw(fires, 1, np.random.default_rng(0), 99)
    found = classify(fires, layer_share=0.25, subsets={}, shifts=shifts)
    assert found.label[0] == "indeterminate"


def test_nothing_at_all_is_no_outliers():
    fires = np.zeros((8, 48, 3), dtype=bool)
    found = _classify(fires)
    assert set(found.label) == {"none"}
    assert model_class({}, found.label) == "no_outliers"
    assert np.isnan(classes.mass(np.zeros((8, 3)))).all()
    assert np.isnan(classes.fewest(np.zeros((8, 3)), 0.9)).all()


def test_the_family_of_the_correction_is_the_tested_features_alone():
    rng = np.random.default_rng(0)
    banded = simulate_classes.plant(Truth("banded", 0.5), 16, 1, rng)
    certain = np.ones((16, 48, 2000), dtype=bool)
    found = _classify(np.concatenate([banded, certain], axis=2))
    assert np.isnan(found.q[1:]).all()
    assert found.label[0] == "banded"


def _held(**shares):
    return dict.fromkeys([*classes.CLASSES, "none"], 0.0) | shares


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ({"systematic": 0.5, "none": 0.5}, "systematic"),
        ({"systematic": 0.49, "none": 0.51}, "systematic"),  # no second class holds any
        ({"systematic": 0.49, "banded": 0.1, "none": 0.41}, "mixed"),
        ({"probabilistic": 0.6}, "probabilistic"),
        ({"banded": 0.6, "systematic": 0.4}, "banded"),
        ({"systematic": 0.45, "indeterminate": 0.1, "banded": 0.45}, "indeterminate"),
        ({"banded": 0.45, "indeterminate": 0.1, "probabilistic": 0.45}, "indeterminate"),
        ({"probabilistic": 0.45, "indeterminate": 0.1}, "indeterminate"),
        ({"systematic": 0.7, "indeterminate": 0.3}, "systematic"),
        ({"indeterminate": 0.9}, "indeterminate"),
        ({"none": 0.9, "indeterminate": 0.1}, "indeterminate"),
        ({"shift_invariant": 0.9}, "indeterminate"),
    ],
)
def test_the_class_of_a_model_is_where_half_of_the_outlier_mass_is(shares, wanted):
    assert model_class(_held(**shares), np.array(["systematic", "none"])) == wanted


def test_more_width_and_marginal_features_do_not_move_the_class_of_a_model():
    counts = np.zeros((8, 1000), dtype=int)
    counts[:, :4] = 1000
    counts[:, 4:300] = 2  # marginal
    label = np.array(["systematic"] * 4 + ["probabilistic"] * 296 + ["none"] * 700)
    for width in (400, 1000):
        shares = classes.mass(counts[:, :width])
        held = {n: v.mean() for n, v in classes.mass_by_class(shares, label[:width]).items()}
        assert model_class(held, label[:width]) == "systematic"


def test_outlier_mass_and_k90():
    counts = np.array([[90, 5, 5, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert classes.mass(counts)[0].tolist() == [0.9, 0.05, 0.05, 0]
    assert classes.fewest(counts, 0.9)[:2].tolist() == [1, 4]


@pytest.mark.parametrize("width", [2880, 4096])
@pytest.mark.parametrize("systematic", [5, 7])
def test_a_few_systematic_features_are_not_outvoted_by_the_tails_of_many(systematic, width):
    """Ordinary features above the threshold at some positions, anywhere, do not fire."""
    rng = np.random.default_rng(width)
    counts = rng.binomial(2048, 0.012, (8, 32, width))
    counts[:, :, :systematic] = 2048
    fires = counts >= 123
    found = _classify(fires)
    assert (found.label == "systematic").sum() == systematic
    share = classes.mass(at_firing(counts, fires))
    held = {name: each.mean() for name, each in classes.mass_by_class(share, found.label).items()}
    assert held["systematic"] == pytest.approx(1)
    assert model_class(held, found.label) == "systematic"
    tails = classes.mass(counts.sum(axis=1))  # as the first edition had it
    assert tails[:, :systematic].sum(axis=1).mean() < 0.5


def test_the_kind_of_a_feature_is_how_it_comes_to_be_large():
    """Planted z: a constant of either sign, ordinary Gaussians of one size, and rare spikes."""
    rng = np.random.default_rng(0)
    n, sites, t = 4, 10, 500
    z = rng.standard_normal((n, sites, t, 5))
    z[..., 0] = 7 + 0.5 * z[..., 0]
    z[:, ::2, :, 1] = -7 + z[:, ::2, :, 1]  # constant, at half of the sites
    z[..., 2] *= 5
    z[..., 3] = np.where(rng.random((n, sites, t)) < 0.08, 8 * np.sign(z[..., 3]), z[..., 3])
    z[:, :, 0] = 100  # position 0 is left out
    fires = (np.abs(z) >= 6).mean(axis=2) >= 0.06
    rest = z[:, :, 1:]
    found = kind_of(
        rest.sum(axis=2), (rest**2).sum(axis=2), fires, np.full(n, t),
        magnitude=6, position_share=0.06,
    )  # fmt: skip
    assert found.tolist() == ["constant", "constant", "wide", "spiky", ""]


def test_features_of_ordinary_sizes_alone_are_wide_and_never_anything_else():
    """Width 2,880, lognormal sizes of sigma .5: those that pass are large Gaussians."""
    rng = np.random.default_rng(1)
    rms = rng.lognormal(0, 0.5, 2880)
    rms = rms / np.sqrt((rms**2).mean())
    heavy = np.argsort(-rms)[:60]
    n, sites, t = 8, 24, 1024
    z = rng.standard_normal((n, sites, t, 60)).astype(np.float32) * rms[heavy].astype(np.float32)
    fires = (np.abs(z) >= 6).mean(axis=2) >= 0.06
    found = _classify(fires)
    assert (found.label == "systematic").sum() >= 4
    kind = kind_of(z.sum(axis=2), (z**2).sum(axis=2), fires, np.full(n, t + 1),
                   magnitude=6, position_share=0.06)  # fmt: skip
    assert set(kind[found.label == "systematic"]) <= {"wide", "spiky"}
    clear = (found.label == "systematic") & (fires.mean(axis=(0, 1)) == 1)
    assert set(kind[clear]) == {"wide"}


def test_a_model_is_at_the_threshold_where_chance_decides_its_best_feature():
    rng = np.random.default_rng(0)
    near = np.clip(rng.normal(0.24, 0.05, (16, 3)), 0, 1)
    assert classes.at_threshold(near, 0.25)
    assert not classes.at_threshold(near + 0.5, 0.25)
    assert not classes.at_threshold(np.full((16, 3), 0.25), 0.25)  # no chance in it
