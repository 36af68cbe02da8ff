"""Where a feature fires: planted counts, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import synthetic
from support.synthetic import Plant, Shape

from moe_outliers.metrics import counts
from moe_outliers.metrics.counts import Band, Counts

SHAPE = Shape(sequences=4, blocks=6, width=64, positions=100)


@pytest.fixture(scope="module")
def planted():
    """A band of six of twelve sites, at 30 of 100 positions, with abs(z) of 6.5."""
    plants = [Plant(3, "band", 0.5, size=6.5, coverage=0.3)]
    return Counts.of(synthetic.planted(plants, SHAPE)[0])


def test_planted_counts_extents_and_shares_are_exact(planted):
    x = planted.at("x", 6)
    assert (x[:, 2:8, 3] == 30).all()
    assert x.sum() == 4 * 6 * 30
    assert planted.bases == ("z", "x")  # y is not recorded
    for basis in planted.bases:
        fires = planted.firing(basis, 6, 0.06)
        assert (counts.site_extent(fires)[:, 3] == 0.5).all()
        assert (counts.block_extent(fires)[:, 3] == 0.5).all()
        assert fires.sum() == 4 * 6
    assert np.allclose(counts.pair_share(x, planted.positions)[:, 3], 0.15, rtol=1e-15)
    assert (counts.firing_share(x, fires, planted.positions)[:, 3] == 0.3).all()
    assert np.isnan(counts.firing_share(x, fires, planted.positions)[:, 4]).all()


def test_a_site_fires_from_the_share_on_and_not_below(planted):
    assert planted.firing("x", 6, 0.30)[:, 2:8, 3].all()
    assert not planted.firing("x", 6, 0.301).any()
    assert planted.firing("x", 6, 0.0).sum() == 4 * 6  # any position is enough, none is not


def test_shares_are_compared_exactly():
    whole = np.array([100, 300, 2048, 50])
    assert counts.least(whole, 0.06).tolist() == [6, 18, 123, 3]
    assert counts.least(whole, 0.07).tolist() == [7, 21, 144, 4]
    assert counts.least(whole, 0.0).tolist() == [1, 1, 1, 1]


@given(st.integers(64, 65535), st.integers(0, 1000))
def test_the_least_count_is_the_smallest_that_reaches_the_share(positions, thousandths):
    enough = int(counts.least(np.array(positions), thousandths / 1000))
    assert enough * 1000 >= thousandths * positions
    assert enough == 1 or (enough - 1) * 1000 < thousandths * positions


def test_the_band_is_found(planted):
    band = Band.of(planted.firing("z", 6, 0.06))
    assert (band.onset[3], band.offset[3], band.fill[3]) == (2, 7, 1.0)
    assert (band.onset[4], band.offset[4]) == (-1, -1)
    assert np.isnan(band.fill[4])


def test_half_of_the_sequences_are_enough_for_the_band():
    fires = np.zeros((4, 8, 1), dtype=bool)
    fires[:2, 3:5] = True
    fires[0, 6] = True
    band = Band.of(fires)
    assert (band.onset[0], band.offset[0], band.fill[0]) == (3, 4, 0.5)


def test_doubling_the_sites_is_not_more_layers(planted):
    fires = planted.firing("z", 6, 0.06)
    twice = np.repeat(fires, 2, axis=1)
    assert np.array_equal(counts.site_extent(twice), counts.site_extent(fires))


def test_a_feature_in_every_mlp_site_is_in_half_of_the_sites_and_in_every_block():
    fires = np.zeros((2, 12, 1), dtype=bool)
    fires[:, 1::2] = True
    assert (counts.site_extent(fires) == 0.5).all()
    assert (counts.block_extent(fires) == 1).all()


def test_gain_moves_x_and_not_z():
    plants = [Plant(3, size=4.0)]
    plain, folded = (synthetic.planted(plants, SHAPE, gain=gain)[0] for gain in (1.0, 2.0))
    assert np.array_equal(plain.z_count, folded.z_count)
    assert np.array_equal(plain.z_max, folded.z_max)
    before, after = Counts.of(plain), Counts.of(folded)
    assert np.array_equal(before.at("x", 4), after.at("x", 8))
    assert (plain.z_max.values <= np.sqrt(SHAPE.width) * (1 + 1e-6)).all()


def test_a_threshold_that_was_not_counted_is_refused(planted):
    with pytest.raises(ValueError, match="no counts of x at threshold 7"):
        planted.at("x", 7)


def test_sites_out_of_order_are_refused():
    data, _ = synthetic.planted([], SHAPE)
    with pytest.raises(ValueError, match="attn_in and mlp_in"):
        Counts.of(data.isel(site=slice(1, None)))


def test_counts_of_y_have_thresholds_of_their_own_and_are_there_where_they_are_recorded():
    data, _ = synthetic.planted([Plant(3, size=6.5)], SHAPE)
    y = data["z_count"].values[:, :, [3, 0]]  # as if of 8 and 12, which x and z do not have alike
    data = data.assign_coords(y_alpha=[8.0, 12.5])
    data["y_count"] = (("sequence", "site", "y_alpha", "feature"), y)
    found = Counts.of(data)
    assert found.bases == ("z", "x", "y")
    assert np.array_equal(found.at("y", 8), y[:, :, 0])
    assert np.array_equal(found.at("y", 12.5), y[:, :, 1])
    with pytest.raises(ValueError, match=r"no counts of y at threshold 6; stored are: 8, 12\.5"):
        found.at("y", 6)


def test_z_is_asked_up_to_half_of_what_it_can_be_and_x_at_any_threshold():
    assert counts.reach("z", 256) == 8
    assert counts.reach("y", 2880) == pytest.approx(26.8, abs=0.1)
    assert counts.reach("x", 64) == np.inf


def test_outlier_values_are_those_of_the_firing_sites(planted):
    x, fires = planted.at("x", 3), planted.firing("x", 3, 0.06)
    wanted = [
        [sum(int(x[s, p, d]) for p in range(12) if fires[s, p, d]) for d in range(64)]
        for s in range(4)
    ]
    assert counts.at_firing(x, fires).tolist() == wanted
    assert counts.at_firing(x, fires).sum() < x.sum()  # the tails of ordinary features
