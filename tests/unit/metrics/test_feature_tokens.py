"""The tokens of a feature: a detector of one token, and a feature that does not look."""

import numpy as np
import pytest

from moe_outliers.metrics.feature_tokens import FeatureTokens, seen_at

THE, REST = 7, np.arange(100, 200)


def _texts(rng, sequences=8, positions=400):
    ids = rng.choice(REST, (sequences, positions))
    ids[rng.random(ids.shape) < 0.05] = THE
    delimiter = ids % 10 == 0
    delimiter[:, 0] = False
    return ids, delimiter


def test_a_detector_of_one_token_is_told_from_a_feature_that_does_not_look():
    rng = np.random.default_rng(0)
    ids, delimiter = _texts(rng)
    detector = np.where(ids == THE, 3, 0)  # at three sites
    found = FeatureTokens.of(detector, ids, delimiter)
    assert found.ids.tolist() == [THE]
    assert found.share[0] == 1
    assert found.half_share == found.frequency[0] == pytest.approx((ids == THE).mean())
    assert found.sequences[0] == 8
    blind = FeatureTokens.of(np.ones_like(ids), ids, delimiter)
    assert blind.half_share == pytest.approx(0.5, abs=0.02)
    assert len(blind.ids) == 5
    at_random = FeatureTokens.of((rng.random(ids.shape) < 0.5).astype(int), ids, delimiter)
    assert at_random.half_share > 0.4


def test_the_type_is_that_of_most_positions():
    rng = np.random.default_rng(1)
    ids, delimiter = _texts(rng)
    ids[:, 0] = 3
    first = np.zeros_like(ids)
    first[:, 0] = 1
    assert FeatureTokens.of(first, ids, delimiter).kind.tolist() == [0]
    stops = FeatureTokens.of(delimiter.astype(int), ids, delimiter)
    assert set(stops.kind) == {1}
    assert set(FeatureTokens.of(np.ones_like(ids) * (ids == THE), ids, delimiter).kind) == {2}


def test_a_feature_that_is_never_the_largest_has_no_tokens():
    ids, delimiter = _texts(np.random.default_rng(2))
    found = FeatureTokens.of(np.zeros_like(ids), ids, delimiter)
    assert (found.seen, len(found.ids)) == (0, 0)
    assert np.isnan(found.half_share)


def test_only_positions_at_the_magnitude_are_seen():
    feature = np.array([[[5, 9, 5]]], dtype=np.uint16)
    largest = np.array([[[6.0, 5.99, 7.0]]])
    assert seen_at(feature, largest, 6).tolist() == [[[5, -1, 5]]]
