"""Magnitudes, signs, gains, types of position, moments: against loops and scipy."""

import numpy as np
import pytest
from scipy import stats
from support import synthetic
from support.synthetic import Shape

from moe_outliers.metrics import magnitude, moments
from moe_outliers.metrics import surrogate as surrogate_module
from moe_outliers.metrics.counts import Counts
from moe_outliers.metrics.magnitude import Extremes, Gains, Magnitudes
from moe_outliers.metrics.surrogate import Surrogate

SHAPE = Shape(sequences=3, blocks=4, width=64, positions=80)


@pytest.fixture(scope="module")
def activations():
    """x and z: feature 5 has both signs and a gain of 3, feature 9 a gain of 0.5."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((3, 8, 80, 64))
    h[:, :, ::7, 5] *= 6
    z = (h / np.sqrt((h**2).mean(axis=3, keepdims=True))).astype(np.float32)
    gain = np.ones((8, 64), dtype=np.float32)
    gain[:, 5], gain[:, 9] = 3, 0.5
    tokens = synthetic.tokens_of(SHAPE)
    x = z * gain[:, None]
    return x, z, gain, synthetic.reduce(x, z, gain, tokens, SHAPE), tokens


def test_extremes_are_those_of_the_activations(activations):
    x, z, _, data, tokens = activations
    found = Extremes.of(data)
    place = np.abs(x).argmax(axis=2)[:, :, None]
    assert np.array_equal(found.signed, np.take_along_axis(x, place, axis=2)[:, :, 0])
    assert np.array_equal(found.z, np.abs(z).max(axis=2))
    delimiter = np.array(tokens["delimiter"].to_pylist())
    for sequence in range(3):
        size = np.abs(x[sequence])
        assert np.array_equal(found.by_type[0, sequence], size[:, 0])
        assert np.array_equal(found.by_type[1, sequence], size[:, delimiter[sequence]].max(axis=1))


def test_magnitudes_are_quartiles_over_firing_sites_and_sequences(activations):
    _, z, _, data, _ = activations
    fires, by_z = (Counts.of(data).firing(b, a, 0.06) for b, a in (("x", 6), ("z", 4)))
    size = Magnitudes.of(Extremes.of(data), fires, by_z, moments.rms(data))
    there = fires[:, :, 5]
    assert there.any()
    extremes = Extremes.of(data).signed[:, :, 5][there]
    assert np.allclose(size.quartiles[:, 5], np.quantile(extremes, (0.25, 0.5, 0.75)))
    assert size.z[5] == np.median(np.abs(z[..., 5]).max(axis=2)[by_z[:, :, 5]])
    assert abs(size.largest[5]) == np.abs(data.x_max.values[..., 5]).max() or size.largest[5] < 0
    assert np.isnan(size.quartiles[:, 9]).all()
    assert not np.isnan(size.largest).any()


def test_the_gain_and_z_at_the_largest_value_add_up_to_it(activations):
    _, _, gain, data, _ = activations
    fires = Counts.of(data).firing("x", 6, 0.06)
    size = Magnitudes.of(Extremes.of(data), fires, fires, moments.rms(data))
    gains = Gains.of(gain, size.largest_site)
    z = np.abs(size.largest) / gains.at_largest
    assert np.allclose(z, size.largest_z, rtol=1e-6)  # one gain at all sites: the same place
    assert gains.median[5] == 3
    assert gains.z_score[5] > 7
    assert np.isnan(Gains.of(np.ones((8, 64)), size.largest_site).z_score).all()


def test_one_sidedness(activations):
    x, _, _, data, _ = activations
    six = Counts.of(data).at("x", 6).sum(axis=(0, 1))
    found = magnitude.one_sidedness(data.x_positive.values.sum(axis=(0, 1)), six)
    up, down = (x[..., 5] >= 6).sum(), (x[..., 5] <= -6).sum()
    assert found[5] == pytest.approx(abs(int(up) - int(down)) / (up + down))
    assert np.isnan(found[9])
    assert magnitude.one_sidedness(np.array([4, 0, 2]), np.array([4, 4, 4])).tolist() == [1, 1, 0]


def test_coverage_by_type_of_position_is_disjoint_and_adds_up(activations):
    x, _, _, data, tokens = activations
    six = Counts.of(data).at("x", 6)
    first, delimiter, other = magnitude.type_shares(data, six)
    mask = np.array(tokens["delimiter"].to_pylist())
    number = mask.sum(axis=1)[:, None]
    total = first + delimiter * number + other * (80 - number - 1)
    assert np.allclose(total, six.sum(axis=1) / 8)
    large = np.abs(x) >= 6
    for s in range(3):
        assert np.allclose(delimiter[s], large[s][:, mask[s]].mean(axis=(0, 1)))


def test_a_sequence_without_delimiters_has_no_coverage_at_delimiters(activations):
    _, _, _, data, _ = activations
    bare = data.assign(delimiters=data.delimiters * 0, x_delimiter=data.x_delimiter * 0)
    assert np.isnan(magnitude.type_shares(bare, Counts.of(bare).at("x", 6))[1]).all()


def test_kurtosis_is_scipys_on_heavy_tails_far_from_zero():
    rng = np.random.default_rng(0)
    x = (rng.standard_t(3, (1, 8, 80, 64)) * 5 + 40).astype(np.float32)
    shape = Shape(sequences=1, blocks=4, width=64, positions=80)
    ones = np.ones((8, 64), dtype=np.float32)
    data = synthetic.reduce(x, x, ones, synthetic.tokens_of(shape), shape)
    wide = x.astype(float)
    pooled = stats.kurtosis(wide.reshape(1, 8, -1), axis=2)
    assert np.allclose(moments.excess_kurtosis(data), pooled, rtol=1e-6)
    token = stats.kurtosis(wide, axis=3).mean(axis=2)
    assert np.allclose(moments.token_excess_kurtosis(data), token, rtol=1e-12)
    assert np.allclose(moments.rms(data), np.sqrt((wide**2).mean(axis=(2, 3))))


def test_constant_activations_have_no_kurtosis():
    data, _ = synthetic.planted([], SHAPE)
    n = SHAPE.positions * SHAPE.width
    power = np.broadcast_to(n * 2.0 ** np.arange(1, 5), data.power_sum.shape)
    flat = data.assign(power_sum=(data.power_sum.dims, power))
    assert np.isnan(moments.excess_kurtosis(flat)).all()


def test_scaling_the_residual_stream_leaves_z_unchanged():
    torch = pytest.importorskip("torch", reason="the extraction's packages are not installed")
    from moe_outliers.recording import reduction

    h = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 64)))
    for layer_norm in (False, True):
        z, scaled = (
            reduction.normalised(c * h, eps=1e-12, layer_norm=layer_norm) for c in (1, 1000)
        )
        assert torch.allclose(z, scaled, rtol=1e-5, atol=1e-6)
        assert z.abs().max() <= 8


def test_decibels():
    assert moments.sqnr_db(np.array([0.01, 1.0])).tolist() == [20, 0]
    assert np.isnan(moments.sqnr_db(np.zeros(1))[0])


def test_the_surrogate_expects_what_gaussian_activations_show():
    shape = Shape(sequences=2, blocks=8, width=400, positions=256)
    gain = {5: 2.5, 6: 3.5, 7: 4.0, 8: 0.0}
    data, _ = synthetic.planted([], shape, gain=gain)
    surrogate, counts = Surrogate.of(data), Counts.of(data)
    for basis, alpha in (("x", 6), ("x", 3), ("z", 3)):
        seen = (counts.at(basis, alpha) / 256).mean(axis=(0, 1))
        wanted = surrogate.coverage(basis, alpha).mean(axis=0)
        assert np.allclose(seen[:9], wanted[:9], atol=5 * 0.5 / np.sqrt(16 * 2 * 256))

    def candidates(basis, alpha, share):
        return surrogate.features(surrogate.coverage(basis, alpha), share, 0.25)

    assert candidates("x", 6, 0.06) == (2, pytest.approx(0.95, abs=0.05))
    assert candidates("z", 6, 0.06)[0] == 0
    assert np.isnan(surrogate.coverage("y", 6)).all()  # what reads the sites is not known
    assert candidates("z", 3, 0.0)[0] == 400


@pytest.mark.parametrize("share", [0.0, 0.01, 0.06, 0.25])
def test_the_surrogates_extent_is_the_binomial_chance_to_fire(share):
    gain = np.linspace(0.5, 5, 40)[None]
    surrogate = Surrogate(gain, np.zeros_like(gain), 2048)
    enough = max(1, int(np.ceil(share * 2048)))
    for basis, chance in (("x", 2 * stats.norm.sf(6 / gain[0])), ("z", 2 * stats.norm.sf(6))):
        wanted = stats.binom.sf(enough - 1, 2048, chance)
        assert np.allclose(surrogate.extent(surrogate.coverage(basis, 6), share), wanted, atol=2e-4)


def test_ordinary_sizes_alone_give_the_wide_features_that_they_are_expected_to():
    """Width 2,880 and a lognormal of sigma .5: about 7 features pass, by their sizes alone."""
    rng = np.random.default_rng(0)
    numbers, expected = [], []
    for _ in range(40):
        rms = rng.lognormal(0, 0.5, 2880)
        rms /= np.sqrt((rms**2).mean())
        chance = 2 * stats.norm.sf(6 / rms)
        numbers.append((chance >= 0.06).sum())
        planted = np.concatenate([rms[:-4], [12.0] * 4])  # outliers must not widen it
        expected.append(surrogate_module.expected_wide(planted, 6, 0.06))
    assert np.mean(expected) == pytest.approx(np.mean(numbers), rel=0.15)
    assert 4 < np.mean(numbers) < 10
    assert surrogate_module.expected_wide(np.ones(100), 6, 0.06) == 0
    assert np.isnan(surrogate_module.expected_wide(np.ones(100), 6, 0.0))


def test_the_surrogate_has_an_offset_where_the_norm_has():
    gain, offset = np.array([[2.0, 0.0, 0.0]]), np.array([[5.0, 7.0, 1.0]])
    found = Surrogate(gain, offset, 100).coverage("x", 6)[0]
    assert found[0] == pytest.approx(stats.norm.sf(0.5) + stats.norm.cdf(-5.5))
    assert found[1:].tolist() == [1, 0]
