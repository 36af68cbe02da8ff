"""A row that does not describe its checkpoint is told in a dry run, and stops an extraction."""

import json
from pathlib import Path

from support.slice import VERDICTS, Slice


def _with(undisturbed, tmp_path, **cells):
    """Copy the slice; change cells of the first row of its table."""
    copy = undisturbed.copy(tmp_path / "run")
    overlay = json.loads(undisturbed.overlay.read_text())
    head, first, *rest = Path(overlay["table"]).read_text().splitlines()
    row = dict(zip(head.split("\t"), first.split("\t"), strict=True)) | cells
    table = tmp_path / "models.tsv"
    table.write_text("\n".join([head, "\t".join(row.values()), *rest]) + "\n")
    (tmp_path / "overlay.yaml").write_text(json.dumps(overlay | {"table": str(table)}))
    return Slice(copy.folder, tmp_path / "overlay.yaml")


def test_a_wrong_row_is_told_and_refused_only_where_its_model_would_be_extracted(
    undisturbed, tmp_path
):
    made = _with(undisturbed, tmp_path, weights_gb="0.5")
    fault = "row small-olmoe: weights_gb is 0.5, the checkpoint has 0.000355: write 0.000355"
    said = made("-n", *VERDICTS)
    assert said.code == 0
    assert fault in said.text
    assert made(*VERDICTS).code == 0  # all is there: nothing is extracted
    statistics, _ = made.pair("small-olmoe", 1)
    statistics.unlink()
    said = made("results/extract/small-olmoe/01.nc")
    assert said.code == 1
    assert fault in said.text
    assert not statistics.exists()
    assert "Error in rule" not in said.text  # no job was started
    made.pair("small-mixtral", 1)[0].unlink()
    said = made("results/extract/small-mixtral/01.nc")
    assert said.code == 0, said.text


def test_the_precision_of_one_model_may_be_another(undisturbed, tmp_path):
    """Receipts hold where the precision of their model is what it was."""
    made = _with(undisturbed, tmp_path)
    settings = json.loads(made.overlay.read_text())
    settings["extract"]["dtype"] = {"small-mixtral": "float32"}
    made.overlay.write_text(json.dumps(settings))
    said = made("-n")
    assert {path.split("/")[2] for path in said.damaged if "/extract/" in path} == {"small-mixtral"}
    settings["extract"]["dtype"] = {"default": "auto", "small-mixtral": "auto"}
    made.overlay.write_text(json.dumps(settings))
    assert not made("-n").damaged
    settings["extract"]["dtype"] = {"small-mixtrel": "float32"}
    made.overlay.write_text(json.dumps(settings))
    said = made("-n")
    assert said.code == 1
    assert "extract.dtype" in said.text
    assert "did you mean small-mixtral?" in said.text
