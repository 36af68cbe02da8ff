"""Intervals against scipy's, at the edges, and what they cover."""

import numpy as np
import pytest
from scipy import stats

from moe_outliers.inference import simulate_intervals
from moe_outliers.stats import draws, intervals
from moe_outliers.stats.intervals import expanded_tail, of_differences, of_means, resample

ANY = np.zeros(1, dtype=bool)
SHARE = np.ones(1, dtype=bool)


@pytest.mark.parametrize("n", [8, 16, 32])
def test_ends_are_scipys_bca_at_the_expanded_level(n):
    values = np.random.default_rng(n).lognormal(0, 0.8, n)
    drawn = resample(np.random.default_rng(1), n, 999)
    ours = of_means(values[:, None], drawn, ANY, confidence=0.95)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        method="BCa",
        n_resamples=999,
        confidence_level=1 - 2 * expanded_tail(0.025, n),
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (ours.low[0], ours.high[0]) == pytest.approx(theirs, rel=1e-9)
    assert ours.method[0] == "expanded BCa"


def test_expanded_tails_are_hesterbergs():
    assert [round(expanded_tail(0.025, n), 4) for n in (8, 16, 32)] == [0.0057, 0.0139, 0.0191]


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_share_gets_the_exact_bound_of_one_missed_sequence(value):
    found = of_means(np.full((16, 1), value), resample(np.random.default_rng(0), 16, 99), SHARE,
                     confidence=0.95)  # fmt: skip
    reach = 1 - 0.025 ** (1 / 16)
    assert reach == pytest.approx(0.206, abs=5e-4)
    assert found.low[0] == pytest.approx(value * (1 - reach))
    assert found.high[0] == pytest.approx(value + (1 - value) * reach)
    assert (found.method[0], found.degenerate[0]) == ("edge", "constant")


def test_values_that_differ_by_rounding_alone_are_constant():
    values = np.full((16, 1), 0.7)
    values[3] = 0.1 * 7
    found = of_means(values, resample(np.random.default_rng(0), 16, 99), SHARE, confidence=0.95)
    assert found.method[0] == "edge"


def test_a_constant_that_is_no_share_has_no_interval():
    found = of_means(np.full((16, 1), 3.0), resample(np.random.default_rng(0), 16, 99), ANY,
                     confidence=0.95)  # fmt: skip
    assert np.isnan([found.low[0], found.high[0]]).all()
    assert (found.estimate[0], found.method[0], found.degenerate[0]) == (3, "none", "constant")


def test_one_sequence_has_no_interval_unless_it_is_a_share():
    drawn = resample(np.random.default_rng(0), 1, 99)
    assert of_means(np.array([[2.0]]), drawn, ANY, confidence=0.95).degenerate[0] == "one sequence"
    share = of_means(np.array([[1.0]]), drawn, SHARE, confidence=0.95)
    assert (share.low[0], share.high[0]) == pytest.approx((0.025, 1))


def test_two_sequences_have_a_finite_interval():
    drawn = resample(np.random.default_rng(0), 2, 999)
    found = of_means(np.array([[0.2], [0.4]]), drawn, SHARE, confidence=0.95)
    assert (found.low[0], found.high[0]) == (0.2, 0.4)


def test_many_quantities_have_the_intervals_that_each_has_alone(monkeypatch):
    values = np.random.default_rng(0).random((12, 30))
    drawn = resample(np.random.default_rng(1), 12, 199)
    together = of_means(values, drawn, np.zeros(30, dtype=bool), confidence=0.9)
    monkeypatch.setattr(intervals, "CHUNK", 600)
    apart = of_means(values, drawn, np.zeros(30, dtype=bool), confidence=0.9)
    assert np.array_equal(together.low, apart.low)
    alone = of_means(values[:, [7]], drawn, ANY, confidence=0.9)
    assert together.high[7] == pytest.approx(alone.high[0], rel=1e-12)


def test_differences_are_students():
    values = np.random.default_rng(0).normal(0.1, 1, (16, 1))
    found = of_differences(values, confidence=0.95)
    wanted = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (found.low[0], found.high[0]) == pytest.approx((wanted.low, wanted.high))
    assert of_differences(np.ones((16, 1)), confidence=0.95).method[0] == "none"


def test_draws_depend_on_seed_purpose_and_sequences_and_not_on_their_order():
    ids = ["b" * 64, "a" * 64, "c" * 64]
    first = draws.generator(0, "bootstrap", ids).integers(0, 1000, 9)
    assert np.array_equal(first, draws.generator(0, "bootstrap", ids[::-1]).integers(0, 1000, 9))
    for other in [(1, "bootstrap", ids), (0, "shifts", ids), (0, "bootstrap", ids[:2])]:
        assert not np.array_equal(first, draws.generator(*other).integers(0, 1000, 9))
    assert draws.order(ids).tolist() == [1, 0, 2]


REPORTED = {
    ("smooth", 8): 0.937, ("smooth", 16): 0.956, ("smooth", 32): 0.952,
    ("near_one", 8): 0.923, ("near_one", 16): 0.929, ("near_one", 32): 0.944,
    ("skewed", 16): 0.912,
    ("rare", 8): 0.969, ("rare", 16): 0.934, ("rare", 32): 0.942,
}  # fmt: skip
"""Measured coverage of this interval in an independent simulation of 2,000 data sets."""


def _far(table, sets):
    """Yield what is more than three standard errors off; both sides were simulated."""
    for row in table.to_pylist():
        wanted = REPORTED.get((row["case"], row["n"]))
        if row["method"] == "expanded BCa and edge" and wanted is not None:
            error = np.sqrt(wanted * (1 - wanted) * (1 / sets + 1 / 2000))
            if abs(row["coverage_share"] - wanted) > 3 * error:
                yield row["case"], row["n"], row["coverage_share"], wanted


def test_coverage_is_what_was_measured_independently():
    table = simulate_intervals.coverage([8, 16], sets=400, confidence=0.95, seed=0)
    assert list(_far(table, 400)) == []


@pytest.mark.slow
def test_coverage_is_what_was_measured_independently_in_full():
    table = simulate_intervals.coverage([8, 16, 32], sets=4000, confidence=0.95, seed=1)
    assert list(_far(table, 4000)) == []
    paired = [row for row in table.to_pylist() if row["case"] == "paired"]
    assert all(abs(row["coverage_share"] - 0.95) < 4 * row["standard_error"] for row in paired)


def test_the_percentile_interval_covers_less():
    rows = simulate_intervals.coverage([8], sets=400, confidence=0.95, seed=0).to_pylist()
    covered = {(row["case"], row["method"]): row["coverage_share"] for row in rows}
    for case in ("smooth", "near_one", "rare"):
        assert covered[case, "percentile"] < covered[case, "expanded BCa and edge"]


@pytest.mark.parametrize(("n", "larger"), [(8, 1), (11, 1), (16, 5), (16, 15)])
def test_two_values_have_exact_quantiles_that_many_resamples_come_near_to(n, larger, monkeypatch):
    values = np.where(np.arange(n) < larger, 0.95, 0.2)[:, None]
    few, many = (resample(np.random.default_rng(seed), n, r) for seed, r in ((0, 99), (1, 400_000)))
    exact = of_means(values, few, SHARE, confidence=0.95)
    assert exact.degenerate[0] == "two values"
    monkeypatch.setattr(intervals, "_two_valued", lambda values: np.zeros(1, dtype=bool))
    drawn = of_means(values, many, SHARE, confidence=0.95)
    step = 0.75 / n  # of the resampled mean
    assert abs(drawn.low[0] - exact.low[0]) <= step + 1e-9
    assert abs(drawn.high[0] - exact.high[0]) <= step + 1e-9
    assert (exact.low[0] <= values.mean() <= exact.high[0]).all()


def test_one_sequence_decides_where_the_estimate_hangs_on_it_and_only_there():
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.02, (16, 2))
    values[7, 1] = 0.9
    drawn = resample(np.random.default_rng(1), 16, 999)
    made = of_means(values, drawn, np.ones(2, bool), confidence=0.95)
    assert intervals.deciding(values, made).tolist() == [-1, 7]
    without = np.delete(values, 7, axis=0).mean(axis=0)
    moved = np.abs(without - values.mean(axis=0)) > (made.high - made.low) / 6
    assert moved.tolist() == [False, True]
    constant = of_means(np.ones((16, 1)), drawn, ANY, confidence=0.95)
    assert intervals.deciding(np.ones((16, 1)), constant).tolist() == [-1]
