"""Reading the batches of a model."""

import numpy as np
import pytest
from support import synthetic
from support.synthetic import Shape

from moe_outliers.storage import statistics_file

SHAPE = Shape(sequences=6, blocks=2, width=64, positions=64)


@pytest.fixture
def batches(tmp_path):
    data, _ = synthetic.planted([], SHAPE)
    paths = []
    for start, stop in ((0, 2), (2, 5), (5, 6)):
        paths.append(tmp_path / f"{start}.nc")
        statistics_file.write(data.isel(sequence=slice(start, stop)), paths[-1])
    return data, paths


def test_batches_of_any_size_and_order_are_one_dataset(batches):
    data, paths = batches
    for order in (paths, paths[::-1]):
        assert statistics_file.read_all(order).identical(statistics_file.read_all(paths))
        found = statistics_file.read_all(order)
        for name in data.variables:
            assert np.array_equal(found[name].values, data[name].values), name
            assert found[name].dims == data[name].dims
        assert set(found.coords) == set(data.coords)


def test_sequences_come_in_the_order_that_is_asked_for(batches):
    data, paths = batches
    order = [3, 0, 5, 1, 4, 2]
    found = statistics_file.read_all(paths, ["x_count", "gain"], order)
    assert found.sequence.values.tolist() == order
    assert np.array_equal(found.x_count.values, data.x_count.values[order])
    assert set(found.data_vars) == {"x_count", "gain"}


def test_files_that_do_not_fit_together_are_refused(batches, tmp_path):
    data, paths = batches
    with pytest.raises(ValueError, match=r"hold the sequences \[0, 1, 2, 3, 4\], not"):
        statistics_file.read_all(paths[:2], order=range(6))
    other = data.isel(sequence=[5]).assign(gain=data.gain * 2)
    statistics_file.write(other, paths[2])
    with pytest.raises(ValueError, match=r"0\.nc and its siblings: .*gain is not the same"):
        statistics_file.read_all(paths)
    narrow, _ = synthetic.planted([], Shape(sequences=6, blocks=2, width=80, positions=64))
    statistics_file.write(narrow.isel(sequence=[5]), paths[2])
    with pytest.raises(ValueError, match="siblings"):
        statistics_file.read_all(paths, ["x_count"])


def test_a_damaged_file_and_a_newer_format_are_named(batches, tmp_path):
    data, paths = batches
    content = bytearray(paths[1].read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    paths[1].write_bytes(content)
    with pytest.raises(ValueError, match="no statistics file"):
        statistics_file.read_all(paths)
    newer = tmp_path / "newer.nc"
    statistics_file.write(data.assign_attrs(format=99), newer)
    with pytest.raises(ValueError, match=r"newer\.nc: format 99"):
        statistics_file.read(newer)
