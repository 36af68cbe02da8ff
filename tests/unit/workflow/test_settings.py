"""Selection and checking of the settings."""

import re
from pathlib import Path

import pytest
import yaml
from support.snake import ROOT

from moe_outliers.storage import receipts
from moe_outliers.workflow import resources, settings, sweep

SCHEMAS = ROOT / "config/schemas"
TABLE = settings.read_table(ROOT / "config/models.tsv", SCHEMAS)


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def test_the_shipped_settings_are_valid_and_select_the_seven_models(config):
    settings.check(config, SCHEMAS)
    chosen = settings.select(config["models"], TABLE, Path("config/models.tsv"))
    assert [row["number"] for row in chosen.values()] == [f"0{n}" for n in range(1, 8)]


@pytest.mark.parametrize(
    "chosen",
    [
        "olmoe-1b-7b,qwen3-30b-a3b",
        ["qwen3-30b-a3b", "olmoe-1b-7b"],
        "01,03",
        [1, 3],
        [3, "01", "olmoe-1b-7b"],
    ],
)
def test_models_are_selected_by_slug_or_number_in_the_tables_order(chosen):
    assert list(settings.select(chosen, TABLE, Path())) == ["olmoe-1b-7b", "qwen3-30b-a3b"]


def test_all_selects_every_row():
    assert set(settings.select("all", TABLE, Path())) == set(TABLE)
    assert list(settings.select(1, TABLE, Path())) == ["olmoe-1b-7b"]


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no model olmo-1b; did you mean olmoe-1b-7b"):
        settings.select("olmo-1b", TABLE, Path("models.tsv"))
    with pytest.raises(ValueError, match="no number 99; there are: 01 olmoe"):
        settings.select([99], TABLE, Path("models.tsv"))


def test_an_empty_revision_names_the_cell_to_fill():
    table = {"x": TABLE["olmoe-1b-7b"] | {"revision": ""}}
    with pytest.raises(ValueError, match=r"pin a revision for x in config/models\.tsv"):
        settings.select("x", table, Path("config/models.tsv"))


@pytest.mark.fault(100)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.sequnces", 16, r"data\.sequnces is not a key; did you mean sequences"),
        ("sede", 1, r"sede is not a key; did you mean seed"),
        ("seed", -1, "seed: -1 is less than the minimum"),
        ("data.revision", "main", r"data\.revision: 'main' does not match"),
        ("data.tokens", 10, r"data\.tokens"),
        ("outliers.layer_share", 25, r"outliers\.layer_share"),
        ("extract.alphas", [6, 3], "must ascend"),
        ("extract.alphas", [3, 5], "must contain 6"),
        ("outliers.magnitude", {"z": 7, "x": 6, "y": 6}, "must contain 7"),
        ("outliers.magnitude", {"z": 6}, r"outliers\.magnitude"),
        ("receipts", "quik", "receipts: 'quik' is not one of"),
    ],
)
def test_a_fault_in_the_settings_names_the_key(config, key, value, message):
    *place, last = key.split(".")
    section = config
    for part in place:
        section = section[part]
    section[last] = value
    with pytest.raises(ValueError, match=message):
        settings.check(config, SCHEMAS)


def test_a_fault_in_the_table_names_the_row(tmp_path):
    path = tmp_path / "models.tsv"
    text = (ROOT / "config/models.tsv").read_text()
    for wrong, right, message in [
        ("main", TABLE["glm-4.5-air"]["revision"], "row glm-4.5-air: revision: 'main'"),
        ("forty-six", "46\t4096", "row glm-4.5-air: layers"),
        ("number\tkolumn", "number\trepo", "kolumn is not a key"),
        ("\n01\t02", "\ngpt-oss-20b\t02", "row 01"),
    ]:
        path.write_text(text.replace(right, wrong, 1))
        with pytest.raises(ValueError, match=message):
            settings.read_table(path, SCHEMAS)


def test_the_tables_of_more_models_and_of_the_calibration_are_valid():
    rows = settings.read_table(ROOT / "config/more-models.tsv", ROOT / "config/schemas")
    for row in rows.values():
        assert re.fullmatch("[0-9a-f]{40}", row["revision"]), row
        assert row["stored_dtype"], row
        size = {"float32": 4, "bfloat16": 2, "fp8": 1}[row["stored_dtype"]]
        assert row["weights_gb"] == pytest.approx(row["params_b"] * size, rel=0.12), row
        assert (row["experts"] == 0) == (row["params_b"] == row["active_b"]), row
    loaded = sweep.load(ROOT, [ROOT / "config/calibration.yaml"], ROOT)
    assert len(loaded.models) == 5
    assert {row["experts"] for row in loaded.models.values()} == {0}
    assert loaded.config["data"]["tokens"] == 1024


def test_the_checkpoint_of_olmoe_is_float32():
    """At its pinned commit all 3,219 tensors are F32, 27,677,042,464 bytes."""
    row = settings.read_table(ROOT / "config/models.tsv", ROOT / "config/schemas")["olmoe-1b-7b"]
    assert (row["weights_gb"], row["stored_dtype"]) == (27.7, "float32")
    needed = resources.needs(row)
    assert (needed["download_gb"], needed["disk_gb"]) == (28, 51)


def test_the_precision_of_a_model_leaves_every_other_receipt_valid(config):
    rows = settings.models(config, ROOT / config["table"], ROOT / "config/schemas")
    before = {slug: receipts.identity(row, config)["settings"] for slug, row in rows.items()}
    earlier = "fa767ee41acdabc665edb1fa0413ae94035a1defd0a9b1ff3bcd9f52a317920c"
    assert before["olmoe-1b-7b"] == earlier  # as every receipt written so far has it
    config["extract"]["dtype"] = {"olmoe-1b-7b": "bfloat16"}
    after = {slug: receipts.identity(row, config)["settings"] for slug, row in rows.items()}
    assert {slug for slug in rows if before[slug] != after[slug]} == {"olmoe-1b-7b"}
    config["extract"]["dtype"] = "bfloat16"
    assert receipts.identity(rows["olmoe-1b-7b"], config)["settings"] == after["olmoe-1b-7b"]
