"""The steps of healing, each on files of its own and on Snakemake's own record."""

import itertools
import os

import pytest
from snakemake.persistence.file import FilePersistence

from moe_outliers import versions
from moe_outliers.storage import files, receipts
from moe_outliers.workflow import damage, healing, lock, paths, script
from moe_outliers.workflow.snakemake_internals import Marks

IDENTITY = {
    "repo": "org/a", "revision": "local", "settings": "0" * 64, "sequences": 2, "batch_size": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def batches():
    """Write two valid batches of a model."""
    pairs = receipts.pairs("a", IDENTITY, paths.STATISTICS, paths.RECEIPT)
    for pair in pairs:
        expected = pair.expected
        files.write_bytes(pair.statistics, expected.batch.encode())
        receipts.write(
            pair.receipt,
            **{name: getattr(expected, name) for name in ("model", "repo", "revision", "batch")},
            format=1, file=pair.statistics.name, size=2, sha256=files.sha256(pair.statistics),
            checkpoint=None, sequences=expected.sequences, ids_sha256=["0" * 64],
            settings=expected.settings, engine=versions.EXTRACT, versions={}, device="cpu",
            dtype="float32", attempt="x", plan=[], pod=None,
        )  # fmt: skip
    return pairs


def product(name):
    """Write a product of a rule with its digest."""
    files.write_bytes(name, b"made")
    script.record(name)
    return paths.RESULTS / name.removeprefix("results/")


def is_product(path):
    return path.suffix in (".parquet", ".md")


def test_what_differs_from_its_receipt_or_digest_is_damaged_and_the_rest_is_whole():
    first, second = batches()
    texts, table = product("results/texts.parquet"), product("results/tables/models.parquet")
    table.write_bytes(b"else")
    files.write_bytes(paths.RESULTS / "notes.md", b"recorded by nobody")
    files.write_bytes(paths.RESULTS / "other.txt", b"no product")
    files.write_bytes(paths.RESULTS / ".hidden.parquet", b"no product either")
    second.statistics.write_bytes(b"junk")
    checked = healing.check({"a": [first, second]}, is_product, full=False)
    assert checked.damaged == {
        table: "the content differs from its recorded digest",
        paths.RESULTS / "notes.md": "its digest was never recorded",
        second.statistics: "4 bytes, the receipt says 2",
    }
    assert sorted(checked.whole) == sorted([texts, first.statistics, first.receipt])


def test_a_file_whose_size_and_time_are_the_same_is_hashed_again_only_if_asked():
    texts = product("results/texts.parquet")
    stat = texts.stat()
    assert not healing.check({}, is_product, full=False).damaged
    texts.write_bytes(b"else")
    os.utime(texts, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not healing.check({}, is_product, full=False).damaged
    assert healing.check({}, is_product, full=True).damaged.keys() == {texts}


def test_marks_say_what_is_damaged_but_no_job_elsewhere_is_disturbed():
    store = FilePersistence(nolock=True)
    pod, whole, damaged, fresh = (paths.RESULTS / f"{n}.nc" for n in ("pod", "whole", "bad", "new"))
    elsewhere = paths.RESULTS / "elsewhere.nc"
    for path, job in ((pod, "pod-1"), (elsewhere, "pod-2"), (whole, None)):
        store._mark_incomplete(str(path), job)
    checked = healing.Checked({pod: "cut", damaged: "cut"}, [whole, fresh, elsewhere])
    said = []
    healing.mark(checked, Marks(), said.append)
    assert said == [f"{path}: cut: will be built again" for path in (pod, damaged)]
    every = [str(path) for path in (pod, whole, damaged, fresh, elsewhere)]
    marked = FilePersistence(nolock=True)._filter_incomplete_keys(every)
    assert marked == {str(pod), str(damaged), str(elsewhere)}
    assert store._get_external_jobids(every) == {"pod-1", "pod-2"}


@pytest.mark.parametrize("rules", [{"extract", "verify"}, {"verify"}])
@pytest.mark.parametrize("where", [*itertools.product(["local", "runpod"], ["auto", "cpu"])])
@pytest.mark.parametrize("gpu", [False, True])
def test_an_extraction_here_needs_a_gpu_or_the_word_cpu(rules, where, gpu, tmp_path, monkeypatch):
    executor, device = where
    monkeypatch.setenv("PATH", str(tmp_path))
    if gpu:
        (tmp_path / "nvidia-smi").touch(mode=0o755)
    if "extract" in rules and where == ("local", "auto") and not gpu:
        with pytest.raises(ValueError, match="Two ways out: `snakemake --profile runpod`"):
            healing.refuse_without_gpu(rules, executor=executor, device=device)
    else:
        healing.refuse_without_gpu(rules, executor=executor, device=device)


def test_one_build_at_a_time_and_who_looks_beside_it_marks_nothing():
    said = []
    own = healing.own(said.append)
    with pytest.raises(ValueError, match=r"this folder is in use by process \d+ on"):
        healing.own(said.append)
    assert healing.claim(said.append) is None
    assert len(said) == 1
    assert "nothing is checked or marked beside it" in said[0]
    own.close()
    with pytest.raises(ValueError, match="has worked here since this run looked: run it again"):
        healing.own(said.append)
    looking = healing.claim(said.append)
    looking.close()
    healing.own(said.append).close()


def test_a_folder_that_cannot_be_written_to_is_named(monkeypatch):
    monkeypatch.setattr(lock.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written to: mend that"):
        healing.claim(print)
    assert not paths.OWNER.exists()


def test_what_a_killed_run_left_goes_and_nothing_else():
    left = [".snakemake/locks/0.input.lock", ".snakemake/backups/x", "results/.x.nc.part"]
    kept = [".snakemake/metadata/x", "results/x.nc", "results/.digests/x.json", "other/.x.part"]
    for name in [*left, *kept]:
        files.write_bytes(name, b"")
    healing.clear_after_dead_owner()
    assert not [name for name in left if (paths.RESULTS / ".." / name).exists()]
    assert all((paths.RESULTS / ".." / name).exists() for name in kept)


def test_only_what_this_run_builds_again_is_removed_with_its_receipt():
    first, second = batches()
    verdict, other = product("results/verify/a.json"), product("results/verify/b.json")
    jobs = [("extract", [first.statistics, second.statistics]), ("verify", [verdict])]
    healing.remove_damaged({first.statistics: "cut", verdict: "cut", other: "cut"}, jobs)
    assert not any(path.exists() for path in (first.statistics, first.receipt, verdict))
    assert all(path.exists() for path in (second.statistics, second.receipt, other))


@pytest.mark.parametrize(
    ("change", "recorded", "proven"),
    [
        (None, True, False),  # times are good evidence: let Snakemake look at them
        (None, False, True),
        ("texts missing", True, True),
        ("tokens missing", True, True),
        ("tokens damaged", True, True),
        ("batch missing", True, False),
        ("batch missing", False, False),
        ("batch damaged", False, False),
        ("receipt missing", False, False),
        ("tokens and batch damaged", True, False),
    ],
)
def test_receipts_prove_tokens_where_times_cannot(change, recorded, proven):
    pairs = batches()
    tokens = product(paths.TOKENS.format(model="a"))
    texts = product(paths.TEXTS)
    missing = {"texts missing": texts, "tokens missing": tokens}
    missing |= {"batch missing": pairs[1].statistics, "receipt missing": pairs[1].receipt}
    if change in missing:
        missing[change].unlink()
    damaged = {"tokens damaged": [tokens], "batch damaged": [pairs[1].statistics]}
    damaged["tokens and batch damaged"] = [tokens, pairs[1].statistics]
    known = pairs if recorded else pairs[:1]
    found = healing.receipts_prove_tokens(
        pairs, tokens, damaged.get(change, []), [pair.statistics for pair in known].__contains__
    )
    assert found is proven


def test_the_digests_that_were_found_are_remembered():
    product("results/texts.parquet")
    healing.check({}, is_product, full=False)
    assert str(paths.TEXTS) in paths.DIGEST_CACHE.read_text()
    hashes, _ = damage.caches(full=False)
    assert hashes._known
