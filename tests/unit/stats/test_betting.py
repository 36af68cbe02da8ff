"""The betting interval against its definition by loops, and its coverage on independent texts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from moe_outliers.inference import simulate_intervals
from moe_outliers.stats import betting

VALUES = st.lists(st.sampled_from([0.0, 0.02, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=12)


def _by_definition(values, orders, alpha=0.05):
    """Every mean of the grid, every order, bet by bet, as the paper writes it."""
    n, kept = len(values), []
    for m in np.arange(1001) / 1000:
        total = 0.0
        for order in orders:
            up = down = 1.0
            seen, squares, v = 0.0, 0.0, 1 / 4
            for t, i in enumerate(order, 1):
                x = values[i]
                stake = math.sqrt(2 * math.log(2 / alpha) / (n * v))
                up *= 1 + min(stake, 0.5 / m if m else math.inf) * (x - m)
                down *= 1 - min(stake, 0.5 / (1 - m) if m < 1 else math.inf) * (x - m)
                seen += x
                mu = (1 / 2 + seen) / (t + 1)
                squares += (x - mu) ** 2
                v = (1 / 4 + squares) / (t + 1)
            total += max(up, down) / 2
        if total / len(orders) < 1 / alpha:
            kept.append(m)
    return (min(kept), max(kept)) if kept else (math.nan, math.nan)


@examples(max_examples=25)
@given(VALUES, st.integers(0, 5))
def test_the_interval_is_that_of_the_definition(values, seed):
    order = betting.orders(np.random.default_rng(seed), len(values))[:3]
    low, high = betting.of_means(np.array(values)[:, None], order, confidence=0.95)
    assert (low[0], high[0]) == pytest.approx(_by_definition(values, order), abs=1e-12)


@given(VALUES)
def test_values_turned_around_turn_the_interval_around(values):
    order = betting.orders(np.random.default_rng(0), len(values))
    table = np.array(values)[:, None]
    low, high = betting.of_means(table, order, confidence=0.95)
    turned = betting.of_means(1 - table, order, confidence=0.95)
    assert np.allclose(turned, (1 - high, 1 - low), atol=0.0011)  # a step of the grid


def test_many_quantities_have_the_intervals_that_each_has_alone(monkeypatch):
    values = np.random.default_rng(0).random((9, 7))
    order = betting.orders(np.random.default_rng(1), 9)
    together = betting.of_means(values, order, confidence=0.9)
    monkeypatch.setattr(betting, "CHUNK", 2000)
    assert np.array_equal(betting.of_means(values, order, confidence=0.9), together)
    alone = betting.of_means(values[:, [4]], order, confidence=0.9)
    assert (together[0][4], together[1][4]) == (alone[0][0], alone[1][0])


@pytest.mark.parametrize("n", [8, 16])
def test_it_covers_where_the_bootstrap_does_not(n):
    """Every kind of independent data in [0, 1]: at least .95 less three standard errors."""
    rows = simulate_intervals.coverage([n], sets=300, confidence=0.95, seed=0).to_pylist()
    betted = {row["case"]: row for row in rows if row["method"] == simulate_intervals.BETTING}
    assert {"bump", "rare_jitter", "two_kinds", "near_one"} <= set(betted)
    for case, row in betted.items():
        if not row["dependent"]:
            assert row["coverage_share"] >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / row["sets"]), case
    ours = {r["case"]: r["coverage_share"] for r in rows if r["method"] == "expanded BCa and edge"}
    assert ours["bump"] < 0.7  # the bootstrap does not know of what it has not seen
    assert ours["one_document"] < 0.8  # nothing mends texts that depend on each other
    assert betted["one_document"]["dependent"]
