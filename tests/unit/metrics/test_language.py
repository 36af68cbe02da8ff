"""Bits per byte on what every tokenizer can say."""

import itertools

import numpy as np
import pytest

from moe_outliers.metrics.language import common_span, span_bits_per_byte


def test_the_common_span_lies_between_ends_of_tokens_of_every_model():
    one, other = np.array([3, 5, 9, 12, 20]), np.array([4, 5, 12, 17])
    assert common_span([one, other]) == (5, 12)
    assert common_span([one]) == (3, 20)
    assert common_span([one, np.array([4, 8])]) == (0, 0)


def test_bits_are_those_of_the_tokens_of_the_span_alone():
    ends, nll = np.array([5, 9, 12, 20]), np.log(2) * np.array([1.0, 2.0, 4.0, 8.0])
    assert span_bits_per_byte(ends, nll, 5, 12) == pytest.approx(6 / 7)
    assert np.isnan(span_bits_per_byte(ends, nll, 0, 0))


def test_two_tokenizers_of_one_model_of_bytes_have_the_same_bits_per_byte():
    rng = np.random.default_rng(0)
    per_byte = rng.gamma(1, 1, 400)
    found = []
    lists = [np.unique(np.r_[rng.integers(2, 390, size), 3, 395]) for size in (80, 150)]
    span = common_span(lists)
    for ends in lists:
        nll = np.array([per_byte[a:b].sum() for a, b in itertools.pairwise(ends)])
        found.append(span_bits_per_byte(ends[1:], nll, *span))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_tokens_that_share_a_character_end_together():
    ends, nll = np.array([4, 4, 8]), np.log(2) * np.array([1.0, 1.0, 1.0])
    assert span_bits_per_byte(ends, nll, 0, 4) == pytest.approx(0.5)
    assert span_bits_per_byte(ends, nll, 4, 8) == pytest.approx(0.25)
