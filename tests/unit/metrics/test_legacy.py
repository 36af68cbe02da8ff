"""The old system's numbers: exactly its definitions, and what is wrong with them."""

import re

import numpy as np
import pytest
from support import synthetic
from support.snake import ROOT
from support.synthetic import Plant, Shape

from moe_outliers.metrics.criteria import Criteria
from moe_outliers.metrics.measure import measure

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/legacy.md").read_text(), re.M | re.S)


def _run(blocks):
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/legacy.md", "exec"), namespace)
    return namespace


@pytest.mark.waits
def test_every_demonstration_of_the_documentation_holds():
    assert len(BLOCKS) == 11  # two of definitions, and F1 to F7, F9, F14
    _run(BLOCKS)


@pytest.fixture(scope="module")
def old_model():
    return _run(BLOCKS[:1])["old_model"]


@pytest.mark.parametrize("gain", [1.0, 2.0, 2.6])
def test_legacy_numbers_are_those_of_the_old_rule_on_the_activations(old_model, gain):
    shape = Shape(sequences=6, blocks=6, width=64, positions=128)
    rng = np.random.default_rng(0)
    h = rng.standard_normal((6, 12, 128, 64))
    h[:, :, ::9, 5] *= 7
    h[:3, 4:, ::5, 6] = 4.2
    z = (h / np.sqrt((h**2).mean(axis=3, keepdims=True))).astype(np.float32)
    x = gain * z
    x[0, :, 3, 11:20] = 5.99  # six only after rounding
    tokens = synthetic.tokens_of(shape)
    data = synthetic.reduce(x, z, np.full((12, 64), gain, np.float32), tokens, shape)
    found = measure("m", data, tokens, Criteria({"z": 4, "x": 6, "y": 4}, 0.25, 0.06), 0)[
        "values"
    ].to_pandas()
    found = found.set_index("metric")["value"]
    count, layers, positions = old_model(x)
    assert found["legacy_count"] == count
    assert found["legacy_layer_mean_share"] == pytest.approx(layers, rel=1e-12)
    assert found["legacy_position_mean_share"] == pytest.approx(positions, rel=1e-12)


@pytest.mark.waits
def test_noise_at_gain_two_is_all_systematic_by_the_old_rule_and_none_by_ours():
    shape = Shape(sequences=8, blocks=28, width=64, positions=320)
    data, tokens = synthetic.planted([], shape, gain=2.0)
    tables = measure("m", data, tokens, Criteria({"z": 4, "x": 6, "y": 4}, 0.25, 0.06), 0)
    values = tables["values"].to_pandas().set_index("metric")["value"]
    assert values["legacy_count"] == 8 * 64
    assert values["legacy_distinct"] == 64
    assert set(tables["features"]["class"].to_pylist()) == {"none"}
    cells = tables["sensitivity"].to_pandas().query("headline and basis == 'z'")
    assert cells["model_class"].item() == "no_outliers"


def test_one_planted_feature_is_one_feature():
    shape = Shape(sequences=4, blocks=8, width=64, positions=128)
    data, tokens = synthetic.planted([Plant(9, size=7)], shape)
    tables = measure("m", data, tokens, Criteria({"z": 4, "x": 6, "y": 4}, 0.25, 0.06), 0)
    values = tables["values"].to_pandas().set_index("metric")["value"]
    assert (values["legacy_count"], values["legacy_distinct"]) == (4, 1)
    at = tables["sensitivity"].to_pandas().query("headline and basis == 'z'").iloc[0]
    assert at["n_dims"] == 1
