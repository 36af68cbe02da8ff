"""Routers and experts: planted loads, lifts, super experts and jumps."""

import itertools

import numpy as np
import pytest
from scipy import stats
from support import synthetic
from support.synthetic import Shape

from moe_outliers.metrics import residual, routing
from moe_outliers.metrics.experts import Attribution, super_experts, writers
from moe_outliers.stats.multiplicity import benjamini_hochberg


def _route(rng, sequences, positions, experts, picks=2):
    return np.argsort(rng.random((sequences, positions, experts)), axis=2)[..., :picks]


def test_loads_and_their_entropy():
    route = np.array([[[[0, 1], [0, 2], [0, 1]]]])
    load = routing.loads(route, 4)
    assert load[0, 0].tolist() == [3 / 6, 2 / 6, 1 / 6, 0]
    assert routing.load_entropy(load)[0, 0] == pytest.approx(
        stats.entropy([3, 2, 1, 0]) / np.log(4)
    )
    assert routing.load_entropy(np.full((1, 8), 1 / 8))[0] == pytest.approx(1)
    assert np.isnan(routing.load_entropy(np.ones((1, 1)))[0])
    assert routing.first_picks(route, 4)[0].tolist() == [1, 1, 0, 0]


def test_a_planted_preference_of_outlier_tokens_is_found_with_its_lift():
    rng = np.random.default_rng(0)
    route, size = _route(rng, 16, 400, 16), rng.random((16, 400))
    for sequence in range(16):
        tokens = np.argsort(-size[sequence])[:4]
        route[sequence, tokens] = [3, 7]
    plan = routing.permutations(16, rng)
    found = routing.associate(route, size, 16, plan)
    q = benjamini_hochberg(found.p)
    assert set(np.flatnonzero((q <= 0.05) & (found.lift > 1))) == {3, 7}
    assert found.lift[3] == pytest.approx(1 / (2 / 16), rel=0.15)
    assert found.information.mean() > 0


def test_lifts_of_unrelated_routes_are_rarely_significant_whatever_the_rarity():
    rng = np.random.default_rng(1)
    plan = routing.permutations(16, rng)
    p = []
    for _ in range(40):
        skewed = rng.dirichlet(np.full(32, 0.3))
        route = rng.choice(32, p=skewed, size=(16, 600, 1))
        p.append(routing.associate(route, rng.random((16, 600)), 32, plan).p)
    p = np.concatenate(p)
    p = p[~np.isnan(p)]
    error = np.sqrt(0.05 * 0.95 / len(p))
    assert (p <= 0.05).mean() <= 0.05 + 4 * error
    assert (p <= 0.001).mean() <= 0.001 + 4 * np.sqrt(0.001 / len(p))


def test_neighbouring_tokens_that_agree_make_no_false_lift():
    rng = np.random.default_rng(2)
    plan = routing.permutations(16, rng)
    runs = np.repeat(rng.integers(0, 8, (16, 20)), 32, axis=1)[..., None]
    smooth = np.repeat(rng.random((16, 20)), 32, axis=1) + rng.random((16, 640)) / 100
    p = [routing.associate(rng.permutation(runs), smooth, 8, plan).p for _ in range(30)]
    assert (np.concatenate(p) <= 0.05).mean() <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 240)


def test_information_of_unrelated_routes_is_zero_on_average():
    rng = np.random.default_rng(3)
    plan = routing.permutations(16, rng)
    found = [
        routing.associate(_route(rng, 16, 500, 64), rng.random((16, 500)), 64, plan).information
        for _ in range(20)
    ]
    values = np.concatenate(found)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))


def test_position_zero_is_no_outlier_token_of_the_association():
    rng = np.random.default_rng(4)
    route, size = _route(rng, 8, 200, 8), rng.random((8, 200))
    size[:, 0], route[:, 0] = 100, [5, 6]
    plan = routing.permutations(8, rng)
    without = routing.associate(route, size, 8, plan)
    size[:, 0] = 0
    assert np.array_equal(routing.associate(route, size, 8, plan).lift, without.lift)


def test_an_expert_that_is_never_picked_has_no_lift_and_two_sequences_no_test():
    rng = np.random.default_rng(5)
    route = _route(rng, 2, 100, 4)
    plan = routing.permutations(2, rng)
    found = routing.associate(route, rng.random((2, 100)), 5, plan)
    assert np.isnan(found.lift[4])
    assert np.isnan(found.p).all()


def test_tokens_over_the_magnitude_everywhere_make_every_lift_one():
    rng = np.random.default_rng(6)
    route = _route(rng, 4, 100, 8)
    assert np.allclose(routing.magnitude_lift(route, np.full((4, 100), 7.0), 8, 6), 1)
    assert np.isnan(routing.magnitude_lift(route, np.ones((4, 100)), 8, 6)).all()


def _published(raw, moe_block, blocks):
    """The rule of ZunhaiSu/Super-Experts-Profilling at 573aead, without its gate, as it runs.

    eval_utils.py lists the outputs of the included layers, then takes percentile and maximum of
    that list, then compares each entry with both.
    """
    include_layers = list(range(round(blocks * 0.75)))
    entries = [
        (layer, expert, raw[place, expert])
        for place, layer in enumerate(moe_block)
        if layer in include_layers
        for expert in range(raw.shape[1])
    ]
    values = [value for *_, value in entries]
    threshold, maximum = np.percentile(values, 99.5), np.max(values)
    return {
        (layer, e) for layer, e, value in entries if value > threshold and value > maximum // 10
    }


def _found(raw, moe_block, blocks, forming=None):
    forming = np.ones(blocks, dtype=bool) if forming is None else forming
    found = super_experts(raw, moe_block, blocks, forming)
    return {(int(moe_block[place]), int(e)) for place, e in zip(*np.nonzero(found), strict=True)}


@pytest.mark.parametrize(("blocks", "experts", "dense"), [(24, 32, 0), (46, 128, 1), (8, 64, 0)])
def test_super_experts_are_those_of_the_published_code(blocks, experts, dense):
    rng = np.random.default_rng(blocks)
    for last in (1, 10, 1000):
        raw = rng.lognormal(0, 0.5, (blocks - dense, experts))
        raw[1, 5], raw[2, 9] = 300, 200
        raw[-1] *= last  # the last blocks write most, and are no part of the pool
        moe_block = np.arange(dense, blocks)
        found = _found(raw, moe_block, blocks)
        assert found == _published(raw, moe_block, blocks)
        assert (1 + dense, 5) in found


def test_super_experts_are_in_blocks_where_massive_activations_form():
    raw = np.ones((8, 64))
    raw[2, 5], raw[3, 9] = 100, 60
    forming = np.arange(8) == 2
    assert _found(raw, np.arange(8), 8, forming) == {(2, 5)}
    assert _found(raw, np.arange(8), 8, np.zeros(8, dtype=bool)) == set()
    assert super_experts(np.zeros((0, 8)), np.zeros(0, int), 4, forming[:4]).shape == (0, 8)


def test_a_writer_is_who_raises_the_maximum_and_a_model_without_a_rise_has_none():
    share = np.full((8, 4, 6), np.nan)  # blocks 1 to 4
    share[:, 2, 1] = 1.0  # block 3, in all sequences
    share[:3, 2, 4] = 0.9  # in three of eight
    share[:, 3, 0] = 1.0  # block 4, behind the rise
    rise = np.tile([4.0, 5.0, 6.0, 90.0, 300.0], (8, 1))
    found = writers(share, np.arange(1, 5), rise)
    assert list(zip(*np.nonzero(found), strict=True)) == [(2, 1)]
    share[:5, 2, 1] = 0.4  # a share of half is needed in half of the sequences
    assert not writers(share, np.arange(1, 5), rise).any()
    assert not writers(np.ones((8, 4, 6)), np.arange(1, 5), np.full((8, 5), 7.0)).any()
    early = np.tile([4.0, 40.0, 41.0, 42.0, 43.0], (8, 1))
    assert not writers(share, np.arange(2, 6), early).any()  # a dense block raised it


def _massive_published(h):
    """locuslab/massive-activations, main_llm.py: of the whole output, position by position."""
    size = np.abs(h)
    ordered = np.sort(size, axis=None)
    median = ordered[(len(ordered) - 1) // 2]  # as torch.median has it
    return bool(((size > 100) & (size > 1000 * median)).any()), size.max(), median


def test_massive_activations_are_those_of_the_published_code():
    """Planted in tokens of ordinary and of raised medians, just over and just under each rule."""
    rng = np.random.default_rng(0)
    cases = []
    for scale, peak, raised in itertools.product((0.05, 0.2, 2.75), (60, 101, 900, 23096), (1, 25)):
        h = rng.standard_normal((64, 96)) * scale
        h[0] *= raised  # a sink's own median is raised: it must not count
        h[0, 26] = -peak
        cases.append(_massive_published(h))
    wanted, largest, median = map(np.array, zip(*cases, strict=True))
    found = residual.massive_2024(largest[:, None], median[:, None])[:, 0]
    assert found.tolist() == wanted.tolist()
    assert 0 < wanted.sum() < len(wanted)


def test_a_planted_expert_is_named_with_its_share_of_the_jump():
    shape = Shape(sequences=4, blocks=4, dense=1, width=32, positions=64, experts=6)
    data, _ = synthetic.planted([], shape)
    for name, value in (("expert_max", -50), ("expert_total", -40), ("expert_raw_max", 500)):
        data[name][:, 0, 2] = value
    for what, value in (("feature", 11), ("position", 3)):
        data[f"expert_max_{what}"][:, 0, 2] = value
        data[f"residual_top_{what}"][:, 1, 0] = value
    data["residual_max"][:] = np.array([5, 500, 500, 500])
    data["residual_median"][:] = 0.2
    found = Attribution.of(data)
    assert found.is_writer[0, 2]
    assert (found.largest[0, 2], found.feature[0, 2], found.position[0, 2]) == (-50, 11, 3)
    assert (found.jump_share[0, 2], found.jump_sequences[0, 2]) == (1.25, 4)
    assert np.isnan(found.jump_share[1, 2])
    assert found.is_super[0, 2]
    assert found.super_sequence_share[0, 2] == 1


def test_the_onset_of_massive_activations_is_the_first_block_of_half_of_the_sequences():
    shape = Shape(sequences=4, blocks=5, width=32, positions=64)
    data, tokens = synthetic.planted([], shape)
    data["residual_median"][:] = 0.2
    data["residual_max"][:] = np.array([300, 150, 300, 300, 300])
    data["residual_max"][:, 0] = 99  # over 1,000 times a smaller median, and not over 100
    data["residual_median"][:, 0] = 0.01
    data["residual_max"][0, 1] = 300
    data["residual_top_feature"][:, 3, 0] = [7, 7, 9, 9]
    delimiter = np.array(tokens["delimiter"].to_pylist())
    table = residual.blocks(data, delimiter, "m").to_pydict()
    assert table["massive_onset"] == [False, False, True, False, False]
    assert table["massive_sequence_share"] == [0, 0.25, 1, 1, 1]
    assert table["top_feature"][3] == 7
    assert table["top_feature_sequence_share"][3] == 0.5
    growth = residual.growth(np.array([[1.0, 3.0, 0.0, 5.0]]))
    assert np.isnan(growth[0, [0, 3]]).all()
    assert growth[0, 1:3].tolist() == [3, 0]
