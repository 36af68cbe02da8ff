"""A disk that fills up: no half file under a final name, a clear message, and a rerun completes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.slice import MODELS, VERDICTS, Slice

from moe_outliers.storage import receipts


def _fill(place: Path, leave: int) -> Path:
    """Take all of a disk but some bytes."""
    ballast = place / "ballast"
    free = shutil.disk_usage(place).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - leave, 1))
    return ballast


@pytest.mark.slow
@pytest.mark.fault(61)
@pytest.mark.parametrize(
    ("built", "leave"),
    [("statistics", 16 * 1024), ("verdict", 0)],
    ids=["at the statistics", "at the verdict"],
)
def test_a_full_disk_leaves_no_half_file_and_a_rerun_completes(
    undisturbed, small_disk, built, leave
):
    run = undisturbed.copy(small_disk / "run")
    for path in run.pair(MODELS[0], 1):
        path.unlink()
    if built == "verdict":
        assert run(*(f"results/extract/{MODELS[0]}/01.{end}" for end in ("nc", "json"))).code == 0
    ballast = _fill(small_disk, leave)
    said = run(*VERDICTS)
    assert said.code != 0
    assert "No space left on device" in said.text, said.text
    final = [p for p in (run.folder / "results").rglob("*") if p.is_file() and p.name[0] != "."]
    for path in final:
        name = str(path.relative_to(run.folder))
        assert path.stat().st_size > 0, f"{name} is a half file"
    ballast.unlink()
    said = run(*VERDICTS)
    assert said.code == 0, said.text
    assert run.digests() == undisturbed.digests()
    assert not list(run.folder.rglob("*.part"))


@pytest.mark.fault(61)
@pytest.mark.slow
@pytest.mark.parametrize(
    "product", ["results/bootstrap/mini-olmoe.parquet", "results/plots/forest.svg"]
)
def test_a_full_disk_at_a_table_or_a_figure(demo, tmp_path, small_disk, product):
    run = demo.copy(small_disk / "run")
    before = run.digests()
    (run.folder / product).unlink()
    ballast = _fill(small_disk, 0)
    said = run(product)
    assert said.code != 0
    assert "No space left on device" in said.text, said.text
    assert not (run.folder / product).exists()
    ballast.unlink()
    said = run(product)
    assert said.code == 0, said.text
    assert run.digests() == before


@pytest.mark.fault(61)
def test_a_full_disk_leaves_no_receipt(undisturbed, small_disk):
    """And then the batch does not exist: the receipt is what is written last."""
    receipt = receipts.read(undisturbed.pair(MODELS[0], 0)[1])
    fields = receipt.model_dump(exclude={"digest"})
    place = small_disk / "results/00.json"
    place.parent.mkdir()
    ballast = _fill(small_disk, 0)
    with pytest.raises(OSError, match="No space left on device"):
        receipts.write(place, **fields)
    assert not list(place.parent.iterdir())
    ballast.unlink()
    receipts.write(place, **fields)
    assert receipts.read(place) == receipt


@pytest.mark.fault(62)
@pytest.mark.parametrize("place", [pytest.param("", marks=pytest.mark.slow), "results/extract"])
def test_results_that_cannot_be_written_are_said_so_before_anything_runs(
    undisturbed, small_disk, place
):
    """A disk that may only be read stops root too."""
    (small_disk / "made").mkdir()
    folder = small_disk / "made" if place else small_disk / "run"
    run = Slice(small_disk.parent / "run" if place else folder, undisturbed.overlay)
    run.folder.mkdir()
    if place:
        (run.folder / "results").mkdir()
        (run.folder / place).symlink_to(folder)
    remount(small_disk, "ro")
    said = run(*VERDICTS)
    remount(small_disk, "rw")
    assert said.code == 1
    assert "cannot be written to: mend that, and run again" in said.text
    assert "Traceback" not in said.text
    assert "rule texts" not in said.text
    assert run("-n", *VERDICTS).code == 0


def remount(place, mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", str(place)], check=True)
