"""False discovery rate, family-wise error, exact correlations."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_outliers.stats import correlation
from moe_outliers.stats.multiplicity import benjamini_hochberg, holm

P = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(P)
def test_q_values_are_scipys(p):
    assert np.allclose(benjamini_hochberg(np.array(p)), stats.false_discovery_control(p))


def test_tests_that_were_not_made_do_not_count():
    p = np.array([0.01, np.nan, 0.04])
    assert benjamini_hochberg(p).tolist() == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm(p).tolist() == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == [0.03, 0.06, 0.06, 0.02]


@given(P)
def test_holm_is_between_p_and_bonferroni_and_keeps_the_order(p):
    p = np.array(p)
    adjusted = holm(p)
    assert (adjusted >= p - 1e-12).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def _spearman(x, y):
    return correlation.spearman(np.array(x, float), np.array(y, float), np.random.default_rng(0))


def test_the_permutation_p_is_exact():
    x, y = [1, 2, 3, 4, 5], [1, 3, 2, 5, 4]
    found = _spearman(x, y)
    every = [stats.spearmanr(x, order).statistic for order in itertools.permutations(y)]
    assert found.rho == pytest.approx(0.8)
    assert found.p == pytest.approx(np.mean(np.abs(every) >= 0.8 - 1e-9))
    assert found.permutations == 120


def test_ties_and_constants():
    tied = _spearman([1, 1, 2, 3], [1, 2, 2, 4])
    assert tied.rho == pytest.approx(stats.spearmanr([1, 1, 2, 3], [1, 2, 2, 4]).statistic)
    assert np.isnan(_spearman([1, 2, 3], [5, 5, 5]).p)
    assert np.isnan(_spearman([1, 2], [3, 4]).rho)


def test_more_than_nine_models_are_permuted_at_random():
    found = _spearman(range(10), range(10))
    assert found.permutations == correlation.DRAWN
    assert found.p == pytest.approx(1 / (1 + correlation.DRAWN), rel=3)


def test_the_least_correlation_that_a_few_models_can_show():
    assert correlation.least_significant(7) == pytest.approx(0.786, abs=5e-4)
    assert correlation.least_significant(6) == pytest.approx(0.886, abs=5e-4)
    assert correlation.least_significant(5) == 1
    assert np.isnan(correlation.least_significant(4))


def test_many_correlations_of_a_few_models_can_show_only_perfect_ones_or_none():
    """104 of them, after Holm: seven models need rho = 1 (2 in 5,040), six have no such p."""
    assert correlation.least_significant(7, 0.05 / 104) == 1
    assert np.isnan(correlation.least_significant(6, 0.05 / 104))
