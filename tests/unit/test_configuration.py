"""Selection and checking of the settings."""

from pathlib import Path

import pytest
import yaml

from moe_outliers.workflow import settings

ROOT = Path(__file__).parents[2]
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
