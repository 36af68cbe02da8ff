"""Classes of features and models on planted truth, and on degenerate data."""

import numpy as np
import pytest
from scipy import stats
from support.snake import ROOT

from moe_outliers.inference import simulate_classes
from moe_outliers.inference.simulate_classes import Truth
from moe_outliers.metrics import classes
from moe_outliers.metrics.classes import classify, model_class
from moe_outliers.metrics.consistency import Shifts
from moe_outliers.metrics.counts import site_extent
from moe_outliers.metrics.criteria import Criteria

CRITERIA = Criteria(magnitude=6, layer_share=0.25, position_share=0.06)


def _classify(fires, candidate=None, seed=0, permutations=999, period=1):
    return classify(
        fires,
        site_extent(fires if candidate is None else candidate),
        layer_share=0.25,
        shifts=Shifts.draw(fires, period, np.random.default_rng(seed), permutations),
    )


def _labels(truth, n, features=200, seed=0):
    fires, by_x = simulate_classes.plant(
        truth, n, features, CRITERIA, np.random.default_rng([seed, n])
    )
    return _classify(fires, by_x).label


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("extent", [1.0, 0.95])
def test_systematic_features_are_called_systematic_at_extent_one_too(n, extent):
    assert (_labels(Truth("systematic", extent), n) == "systematic").all()


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("extent", [0.3, 0.4, 0.5, 0.6, 0.68])
def test_banded_features_are_called_banded(n, extent):
    assert (_labels(Truth("banded", extent), n) == "banded").all()


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("extent", [0.3, 0.45, 0.6])
def test_features_at_random_sites_are_hardly_ever_systematic_or_banded(n, extent):
    labels = _labels(Truth("random", extent), n, features=400)
    assert np.isin(labels, ["systematic", "banded"]).mean() <= 0.10
    assert np.isin(_labels(Truth("run", 0.4), n), ["systematic", "banded"]).mean() <= 0.10


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("gain", [2.0, 3.5, 4.0])
def test_gaussian_activations_are_never_systematic_whatever_the_gain(n, gain):
    labels = _labels(Truth("gaussian", gain), n)
    assert set(labels) == ({"none"} if gain == 2 else {"gain_explained"})


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("truth", ["attn_in", "trend"])
def test_one_kind_of_site_and_a_mild_trend_over_depth_are_never_banded(n, truth):
    assert "banded" not in _labels(Truth(truth, 0.5 if truth == "attn_in" else 0.45), n)


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
    fires[:, 0] = True
    assert _classify(fires).label[0] == "indeterminate"


def test_nothing_at_all_is_no_outliers():
    fires = np.zeros((8, 48, 3), dtype=bool)
    found = _classify(fires)
    assert set(found.label) == {"none"}
    assert model_class({}, found.label) == "no_outliers"
    assert np.isnan(classes.mass(np.zeros((8, 3)))).all()
    assert np.isnan(classes.fewest(np.zeros((8, 3)), 0.9)).all()


def test_the_family_of_the_correction_is_the_tested_features_alone():
    rng = np.random.default_rng(0)
    banded, _ = simulate_classes.plant(Truth("banded", 0.5), 16, 1, CRITERIA, rng)
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
        ({"systematic": 0.49, "none": 0.51}, "mixed"),
        ({"probabilistic": 0.6}, "probabilistic"),
        ({"banded": 0.6, "systematic": 0.4}, "banded"),
        ({"gain_explained": 0.9}, "gain_explained"),
        ({"systematic": 0.45, "indeterminate": 0.1}, "indeterminate"),
        ({"banded": 0.45, "indeterminate": 0.1}, "indeterminate"),
        ({"probabilistic": 0.45, "indeterminate": 0.1}, "indeterminate"),
        ({"systematic": 0.7, "indeterminate": 0.3}, "systematic"),
        ({"indeterminate": 0.9}, "indeterminate"),
        ({"none": 0.9, "indeterminate": 0.1}, "mixed"),
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
