"""The circular-shift test: its null, its power, and what it must not find."""

import numpy as np
import pytest
from scipy import stats

from moe_outliers.metrics import consistency
from moe_outliers.metrics.consistency import Shifts, shift_test


def _runs(rng, n, sites, features, size):
    """One run of sites, anywhere on the circle, anew in every sequence."""
    place = np.arange(sites)[None, :, None]
    return (place - rng.integers(0, sites, (n, 1, features))) % sites < size


def _test(fires, period, rng, permutations, screen=None):
    return shift_test(fires, Shifts.draw(fires, period, rng, permutations), screen)


def brute(fires, shifts):
    """J by loops, for given shifts in sites."""
    moved = [np.roll(row, shift) for row, shift in zip(fires, shifts, strict=True)]
    found = []
    for i in range(len(moved)):
        for j in range(i):
            union = (moved[i] | moved[j]).sum()
            found.append((moved[i] & moved[j]).sum() / union if union else 0.0)
    return np.mean(found)


def test_consistency_equals_loops_over_pairs():
    rng = np.random.default_rng(0)
    fires = rng.random((5, 12, 300)) < rng.random(300)
    fires[:, :, 7] = False
    found = consistency.consistency(fires)
    wanted = [brute(fires[:, :, f], [0] * 5) for f in range(300)]
    assert np.allclose(found, wanted, rtol=0, atol=1e-14)


def test_expected_agreement_is_the_mean_over_all_shifts():
    rng = np.random.default_rng(1)
    fires = rng.random((3, 8, 1)) < 0.5
    every = [brute(fires[:, :, 0], [0, 2 * a, 2 * b]) for a in range(4) for b in range(4)]
    test = _test(fires, 1, rng, 99)
    assert test.expected[0] == pytest.approx(np.mean(every), abs=1e-14)


def test_null_p_values_are_uniform():
    rng = np.random.default_rng(2)
    for sites in (_runs(rng, 8, 48, 2000, 18), rng.random((8, 48, 2000)) < 0.4):
        p = _test(sites, 1, rng, 999).p
        assert (p <= 0.05).mean() == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 2000))
        assert stats.kstest(p, "uniform").pvalue > 0.001


def test_the_smallest_p_is_that_of_the_permutations_and_is_never_zero():
    fires = np.zeros((8, 48, 1), dtype=bool)
    fires[:, 10:20] = True
    assert _test(fires, 1, np.random.default_rng(0), 9_999).p[0] == 1 / 10_000


def test_firing_at_all_sites_of_one_kind_is_no_agreement_over_depth():
    fires = np.zeros((16, 48, 1), dtype=bool)
    fires[:, 0::2] = True
    test = _test(fires, 1, np.random.default_rng(0), 99)
    assert test.p[0] == 1
    assert np.isnan(test.kappa[0])


def test_the_period_is_that_of_the_token_mixer():
    attention = np.array(["attention", "moe"] * 6)
    assert consistency.period(attention) == 1
    dense = attention.copy()
    dense[1] = "mlp"
    assert consistency.period(dense) == 1
    mixed = np.array(["linear_attention", "moe"] * 12)
    mixed[6::8] = "attention"
    assert consistency.period(mixed) == 4
    assert consistency.period(mixed[:10]) == 5  # nothing repeats: no shift but none


def test_shifts_keep_kinds_of_site_together():
    rng = np.random.default_rng(3)
    fires = np.zeros((12, 48, 1), dtype=bool)
    fires[:, 6::8] = True  # every fourth block: full attention
    assert _test(fires, 4, rng, 99).p[0] == 1
    assert _test(fires, 1, rng, 999).p[0] < 0.01  # what shifts of single blocks would say


def test_screening_ends_the_test_of_hopeless_features_alone():
    rng = np.random.default_rng(4)
    fires = np.concatenate([_runs(rng, 8, 48, 200, 18), np.zeros((8, 48, 3), dtype=bool)], axis=2)
    fires[:, 10:30, -3:] = True
    whole = _test(fires, 1, np.random.default_rng(0), 9_999).p
    screened = _test(fires, 1, np.random.default_rng(0), 9_999, screen=999).p
    assert np.array_equal(whole[screened <= 0.2], screened[screened <= 0.2])
    assert (whole[screened > 0.2] > 0.15).all()
    assert (screened[-3:] == 1e-4).all()
