"""Every check of `verify` passes on what the extraction writes, and fails on what it is for."""

import pytest

from moe_outliers import verify
from moe_outliers.storage import statistics_file

MODEL = "small-olmoe"


@pytest.fixture(scope="module")
def written(undisturbed):
    """The statistics of one model, as the slice has written them."""
    paths = sorted((undisturbed.folder / "results/extract" / MODEL).glob("*.nc"))
    return statistics_file.read_all(paths)


@pytest.fixture
def data(written):
    return written.copy(deep=True)


def put(name, value, *, at=(0, 0)):
    def change(data):
        data[name].values[at] = value

    return change


def constant(data):
    data.power_sum.values[0, 1] = 0


def twice(data):
    data.route.values[..., 1] = data.route.values[..., 0]


FAULTS = {
    "finite": (put("residual_max", float("nan")), "residual_max holds NaN"),
    "alive": (constant, "site 1: all activations are zero"),
    "monotone": (put("x_count", 60000, at=(0, 0, -1, 0)), "x_count grows with alpha"),
    "bounded": (put("z_max", 1e6), "exceeds sqrt"),
    "extremes": (put("x_first", 1e6), "contradicts the extremes"),
    "unions": (put("union_count", 60000, at=(0, 0, 0)), "union_count"),
    "moments": (put("token_kurtosis", 0.5), "token_kurtosis is below 1"),
    "residual": (put("residual_top", 1e6, at=(0, 0, 0)), "residual_top"),
    "routing": (twice, "names an expert twice"),
}


def test_what_the_extraction_writes_passes_every_check(data):
    assert {name: list(check(data)) for name, check in verify.CHECKS.items()} == {
        name: [] for name in verify.CHECKS
    }
    assert set(FAULTS) == set(verify.CHECKS)


@pytest.mark.fault(85, 86)
@pytest.mark.parametrize("name", FAULTS)
def test_each_check_fails_on_what_it_is_for(data, name):
    change, message = FAULTS[name]
    change(data)
    assert any(message in fault for fault in verify.CHECKS[name](data))


@pytest.mark.fault(82)
def test_sequences_that_repeat_or_miss_are_named(data):
    assert verify._repeats(["a", "b", "a"]) == ["sequence 2 repeats another"]
    expected = verify.Expectation({}, [float(a) for a in data.alpha.values], 64, 3)
    assert not list(verify._contract(data, expected))
    fewer = data.isel(sequence=[0, 2])
    assert any("sequences [" in fault for fault in verify._contract(fewer, expected))


@pytest.mark.fault(86)
def test_a_checkpoint_that_is_not_as_the_table_says_is_named(data):
    row = {"layers": 2, "width": 64, "experts": 8, "top_k": 2}
    assert not list(verify._table(data, row))
    told = list(verify._table(data, row | {"layers": 16}))
    assert told == ["the table of models says layers 16, the checkpoint has 2"]


@pytest.mark.fault(87)
def test_batches_of_several_types_are_no_model(undisturbed):
    from moe_outliers.storage import receipts

    paths = sorted((undisturbed.folder / "results/extract" / MODEL).glob("*.json"))
    found = [receipts.read(path) for path in paths]
    assert not list(verify._provenance(found))
    other = found[1].model_copy(update={"dtype": "float32"})
    (told,) = verify._provenance([found[0], other, *found[2:]])
    assert "2 sets of versions, dtype and checkpoint" in told
