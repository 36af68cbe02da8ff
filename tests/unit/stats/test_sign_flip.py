"""The sign-flip test against every choice of signs, and on data that the t test has no p for."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_outliers.stats import sign_flip

VALUES = st.lists(st.integers(-6, 6), min_size=1, max_size=9)


def _p(values, seed=0):
    return sign_flip.p_value(np.array(values, dtype=float), np.random.default_rng(seed))


def _brute(values):
    """All choices of signs of whole numbers, in whole numbers."""
    observed = abs(sum(values))
    sums = [
        sum(v * s for v, s in zip(values, signs, strict=True))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(abs(each) >= observed for each in sums) / len(sums)


@given(VALUES)
def test_the_p_is_the_share_of_all_choices_of_signs(values):
    assert _p(values) == _brute(values)


@given(VALUES)
def test_neither_order_nor_sign_nor_unit_of_the_differences_changes_it(values):
    wanted = _p(values)
    assert _p(values[::-1]) == wanted
    assert _p([-v for v in values]) == wanted
    assert _p([0.1 * v for v in values]) == wanted  # a tenth is no sum of powers of two


@pytest.mark.parametrize("n", [1, 8, 16, 20, 21, 32])
def test_a_difference_that_is_the_same_on_every_text_has_the_smallest_p_there_is(n):
    assert _p([-0.3] * n) == pytest.approx(2.0 ** (1 - n), rel=1e-12)
    assert sign_flip.least(n) <= 1
    if n <= sign_flip.EXACT:
        assert _p([-0.3] * n) == sign_flip.least(n)


def test_nothing_differs_and_nothing_is_there():
    assert _p([0, 0, 0]) == 1
    assert np.isnan(_p([]))
    assert np.isnan(sign_flip.least(0))


def test_differences_of_one_size_have_the_p_of_the_sign_test():
    values = [0.2] * 17 + [-0.2] * 7
    wanted = stats.binomtest(17, 24).pvalue
    assert _p(values) == pytest.approx(wanted, rel=1e-12)
    assert _p([0.2] * 12 + [-0.2] * 12) == 1


def test_drawn_signs_agree_with_all_of_them_and_come_from_the_generator(monkeypatch):
    values = np.random.default_rng(3).normal(0.25, 1, 20)
    exact = _p(values)
    monkeypatch.setattr(sign_flip, "EXACT", 19)
    drawn = [_p(values, seed) for seed in range(3)]
    error = np.sqrt(exact * (1 - exact) / sign_flip.DRAWN)
    assert all(abs(each - exact) < 4 * error for each in drawn)
    assert _p(values, 1) == drawn[1]
    assert min(drawn) >= 1 / (1 + sign_flip.DRAWN)


@pytest.mark.parametrize("n", [8, 16])
def test_the_level_holds_for_heavy_tails(n):
    """Student's t with 2.5 degrees of freedom: its sample variance says little."""
    rng = np.random.default_rng(5)
    sets = 1500
    rejected = np.mean([_p(row) <= 0.05 for row in rng.standard_t(2.5, (sets, n))])
    assert rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)


@pytest.mark.parametrize("n", [6, 24])
def test_several_means_have_the_p_that_each_has_alone(n):
    rng = np.random.default_rng(n)
    values = np.column_stack(
        [rng.normal(0.4, 1, n), np.zeros(n), np.full(n, -2.0), rng.normal(0, 1, n)]
    )
    together = sign_flip.p_values(values, np.random.default_rng(1), 2000)
    alone = [sign_flip.p_value(each, np.random.default_rng(1), 2000) for each in values.T]
    assert together.tolist() == alone
    assert together[1] == 1
    assert together[2] == pytest.approx(2.0 ** (1 - n))
