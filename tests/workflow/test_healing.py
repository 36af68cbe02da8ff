"""Missing or invalid: exactly that is built again."""

import json
import os
import shutil

import pytest
from support.slice import MODELS, VERDICTS

from moe_outliers import versions
from moe_outliers.storage import files

OLMOE, MIXTRAL = MODELS


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _zero_page(path):
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)


def _edit(**changes):
    def edit(path):
        fields = json.loads(path.read_text()) | changes
        del fields["digest"]
        fields["digest"] = files.sha256_of(fields)
        path.write_bytes(files.json_bytes(fields))

    return edit


def _cut(path):
    os.truncate(path, path.stat().st_size // 2)


def _append(path):
    with path.open("ab") as file:
        file.write(b"junk")


DAMAGE = {
    "missing": (0, lambda path: path.unlink(), "the statistics file is missing"),
    "empty": (0, lambda path: os.truncate(path, 0), "0 bytes, the receipt says"),
    "cut": (0, _cut, "bytes, the receipt says"),
    "flipped": (0, _flip, "the content differs from its receipt"),
    "zeroed page": (0, _zero_page, "the content differs from its receipt"),
    "appended junk": (0, _append, "bytes, the receipt says"),
    "receipt missing": (1, lambda path: path.unlink(), "the receipt is missing"),
    "receipt empty": (1, lambda path: os.truncate(path, 0), "the receipt is invalid"),
    "receipt edited": (1, _edit(sequences=[7]), "made for sequences [7]"),
    "receipt forged": (1, _edit(sha256="0" * 64), "the content differs from its receipt"),
    "receipt flipped": (1, _flip, "the receipt is invalid"),
    "older engine": (1, _edit(engine=versions.EXTRACT - 1), "by version 0 of the extraction"),
    "other token ids": (1, _edit(ids_sha256=["0" * 64]), "made from other token ids"),
    "other settings": (1, _edit(settings="0" * 64), "made with other settings"),
    "other versions": (
        1,
        _edit(versions={"torch": "1.0", "transformers": "1.0", "cuda": "none"}),
        "made with cuda none torch 1.0",
    ),
}
"""By name: the file of the pair that is damaged, how, and the reason that is told."""

ROUNDS = [
    ["missing", "cut", "flipped", "zeroed page"],
    ["empty", "appended junk", "receipt missing", "receipt edited"],
    ["receipt empty", "receipt forged", "receipt flipped", "older engine"],
    ["other settings", "other versions", "other token ids"],
]
PLACES = [(OLMOE, 0), (MIXTRAL, 1), (OLMOE, 2), (MIXTRAL, 2)]


def test_another_device_asks_for_no_new_extraction(undisturbed, tmp_path):
    settings = json.loads(undisturbed.overlay.read_text()) | {"extract": {"device": "auto"}}
    run = undisturbed.copy(tmp_path / "run")
    run.overlay = tmp_path / "auto.yaml"
    run.overlay.write_text(json.dumps(settings))
    said = run("-n", *VERDICTS)
    assert said.nothing_to_do, said.text


def test_every_kind_of_damage_has_its_turn():
    assert sorted(name for names in ROUNDS for name in names) == sorted(DAMAGE)


@pytest.mark.fault(66, 90, 91)
@pytest.mark.parametrize(
    "kinds", [ROUNDS[0], *(pytest.param(r, marks=pytest.mark.slow) for r in ROUNDS[1:])]
)
def test_a_damaged_batch_is_shown_by_a_dry_run_and_built_again_alone(undisturbed, tmp_path, kinds):
    run = undisturbed.copy(tmp_path / "run")
    before = run.contents()
    expected = {}
    for kind, (model, batch) in zip(kinds, PLACES, strict=False):
        which, damage, reason = DAMAGE[kind]
        damage(run.pair(model, batch)[which])
        expected[f"results/extract/{model}/{batch:02d}.nc"] = reason
    damaged = run.contents()

    said = run("-n", *VERDICTS)
    assert said.damaged.keys() == expected.keys(), said.text
    assert all(expected[path] in reason for path, reason in said.damaged.items())
    models = {path.split("/")[2] for path in expected}
    assert said.jobs == {"extract": len(models), "verify": len(models)}
    assert run.contents() == damaged

    said = run(*VERDICTS)
    assert said.code == 0, said.text
    touched = {path.removeprefix("results/extract/")[:-3] for path in expected}
    for path, content in run.contents().items():
        if path.rpartition(".")[0] not in touched:
            assert content == before[path], path
    assert run.digests() == undisturbed.digests()
    assert run("-n", *VERDICTS).nothing_to_do


@pytest.mark.slow
@pytest.mark.fault(94)
def test_another_models_pair_copied_into_place_is_refused(undisturbed, tmp_path):
    run = undisturbed.copy(tmp_path / "run")
    for mine, other in zip(run.pair(OLMOE, 1), run.pair(MIXTRAL, 1), strict=True):
        shutil.copy2(other, mine)
    said = run(*VERDICTS)
    assert said.damaged == {
        f"results/extract/{OLMOE}/01.nc": f"made for model {MIXTRAL}, expected {OLMOE}"
    }
    assert run.digests() == undisturbed.digests()


def test_a_batch_of_which_nothing_is_left_is_built_again_for_whatever_needs_it(
    undisturbed, tmp_path
):
    run = undisturbed.copy(tmp_path / "run")
    for path in run.pair(OLMOE, 1):
        path.unlink()
    said = run("-n", *VERDICTS)
    assert said.damaged == {f"results/verify/{OLMOE}.json": "a batch that it judges is missing"}
    assert said.jobs == {"extract": 1, "verify": 1}


@pytest.mark.fault(64)
def test_what_is_only_touched_is_not_built_again(undisturbed, tmp_path):
    run = undisturbed.copy(tmp_path / "run")
    for path in run.pair(OLMOE, 0):
        path.touch()
    for batch, then in ((0, 1_900_000_000), (1, 1_000_000_000)):  # forwards, and back
        for path in run.pair(MIXTRAL, batch):
            os.utime(path, (then, then))
    (run.folder / f"results/tokens/{OLMOE}.parquet").touch()
    assert run("-n", *VERDICTS).nothing_to_do
    assert run("--config", "receipts=full", "-n", *VERDICTS).nothing_to_do


@pytest.mark.fault(63)
def test_without_snakemakes_records_the_receipts_prove_what_is_valid(undisturbed, tmp_path):
    run = undisturbed.copy(tmp_path / "run")
    shutil.rmtree(run.folder / ".snakemake")
    assert run("-n", *VERDICTS).nothing_to_do
    (run.folder / f"results/tokens/{OLMOE}.parquet").touch()
    assert run("-n", *VERDICTS).jobs == {"verify": 1}
    _flip(run.pair(OLMOE, 1)[0])
    assert run("-n", *VERDICTS).jobs == {"extract": 1, "verify": 1}


def test_marks_on_what_is_whole_are_taken_off(undisturbed, tmp_path):
    from snakemake.persistence.file import FilePersistence

    run = undisturbed.copy(tmp_path / "run")
    store = FilePersistence(nolock=True, path=run.folder / ".snakemake")
    for name in (name for name in run.digests() if "/." not in name):
        store._mark_incomplete(name, None)
    assert run("-n", *VERDICTS).nothing_to_do
    assert not [p for p in (run.folder / ".snakemake/incomplete").rglob("*") if p.is_file()]


def test_a_mark_that_names_a_job_elsewhere_is_left_alone(undisturbed, tmp_path):
    from snakemake.persistence.file import FilePersistence

    run = undisturbed.copy(tmp_path / "run")
    store = FilePersistence(nolock=True, path=run.folder / ".snakemake")
    name = f"results/extract/{OLMOE}/01.nc"
    store._mark_incomplete(name, "pod-1")
    _flip(run.folder / name)
    run("-n", *VERDICTS)
    assert store._get_external_jobids([name]) == {"pod-1"}


@pytest.mark.fault(90)
def test_a_damaged_product_is_built_again_and_no_batch_with_it(undisturbed, tmp_path):
    run = undisturbed.copy(tmp_path / "run")
    before = run.contents()
    verdict = run.folder / f"results/verify/{OLMOE}.json"
    _append(verdict)
    _cut(run.folder / f"results/tokens/{MIXTRAL}.parquet")
    said = run(*VERDICTS)
    assert said.damaged.keys() == {
        f"results/tokens/{MIXTRAL}.parquet",
        f"results/verify/{OLMOE}.json",
    }
    assert said.jobs == {"tokenize": 1, "verify": 2}
    assert run.contents() == before
    assert run.digests() == undisturbed.digests()
    (run.folder / "results/.digests/verify" / f"{OLMOE}.json.json").unlink()
    assert run("-n", *VERDICTS).jobs == {"verify": 1}


@pytest.mark.slow
@pytest.mark.fault(90, 91)
def test_links_are_followed_and_a_folder_in_the_place_of_a_file_is_damage(undisturbed, tmp_path):
    """What a killed run left of a folder goes too; a link that leads back to itself is no trap."""
    run = undisturbed.copy(tmp_path / "run")
    verdicts = (run.folder / "results/verify").rename(tmp_path / "elsewhere")
    (run.folder / "results/verify").symlink_to(verdicts)
    (verdicts / "loop").symlink_to(run.folder / "results")
    _append(verdicts / f"{MIXTRAL}.json")
    receipt = run.pair(OLMOE, 1)[1]
    receipt.unlink()
    receipt.mkdir()
    left = run.folder / "results/.figures.part"
    left.mkdir()
    (left / "forest.svg").touch()
    said = run(*VERDICTS)
    assert said.code == 0, said.text
    assert said.jobs == {"extract": 1, "verify": 2}
    assert not left.exists()
    (verdicts / "loop").unlink()
    (run.folder / "results/verify").unlink()
    verdicts.rename(run.folder / "results/verify")
    assert run.digests() == undisturbed.digests()


@pytest.mark.fault(67)
def test_changed_settings_of_the_forward_pass_run_it_again(undisturbed, tmp_path):
    run = undisturbed.copy(tmp_path / "run")
    overlay = json.loads(run.overlay.read_text())
    overlay["extract"]["dtype"] = "float32"
    run.overlay = tmp_path / "overlay.yaml"
    run.overlay.write_text(json.dumps(overlay))
    said = run("-n", *VERDICTS)
    assert said.jobs == {"extract": 2, "verify": 2}
    assert set(said.damaged.values()) == {"made with other settings of `extract`"}
