"""Documents are chosen before any tokenizer is known, and the same every time."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.hub import COMMIT, Hub

from moe_outliers import texts


def _documents(count, size=600):
    return [(f"id {i}", f"document {i} " + "word " * (size // 5)) for i in range(count)]


def test_a_choice_is_extended_by_more_sequences_and_moved_by_the_seed():
    documents = _documents(40)
    few = texts.draw(documents, sequences=4, tokens=64, seed=0)
    assert texts.draw(documents, sequences=9, tokens=64, seed=0).slice(0, 4).equals(few)
    assert texts.draw(documents[::-1], sequences=4, tokens=64, seed=0).equals(few)
    assert not texts.draw(documents, sequences=4, tokens=64, seed=1).equals(few)


def test_short_and_repeated_documents_are_passed_over():
    documents = [("short", "word " * 10), *_documents(3), ("again", _documents(3)[0][1])]
    chosen = texts.draw(documents, sequences=3, tokens=64, seed=0)
    assert set(chosen["document"].to_pylist()) == {"id 0", "id 1", "id 2"}


def test_too_few_documents_are_counted():
    with pytest.raises(
        ValueError, match=r"5 documents of at least 512 bytes .* 3 found, 2 missing"
    ):
        texts.draw(_documents(3), sequences=5, tokens=64, seed=0)


def test_a_text_is_cut_into_equal_ranges_that_never_split_a_character():
    text = "häßliche Wörter — überall. " * 200
    table = texts.cut("some.txt", text, sequences=7, tokens=64)
    assert "".join(table["text"].to_pylist()) == text
    sizes = [len(part.encode()) for part in table["text"].to_pylist()]
    assert max(sizes) - min(sizes) <= 4
    assert set(table["document"].to_pylist()) == {"some.txt"}


def test_too_short_a_text_says_how_many_bytes_are_missing():
    with pytest.raises(ValueError, match=r"need 1024 bytes .* it has 1000, 24 are missing"):
        texts.cut("some.txt", "x" * 1000, sequences=2, tokens=64)


def test_the_bundled_text_is_the_one_that_its_readme_describes():
    readme = (texts.resources.files("moe_outliers") / "data/README.md").read_text()
    assert texts._sha256(texts.read_bundled()) in readme


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"  \n", "the text is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"txet": 1}', "line 1: no JSON object with a key `text`"),
        (b'{"text": "a"}\n[1]', "line 2"),
        (b'{"text": 3}', "`text` is no string"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "some.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"some\.jsonl.*{message}"):
        list(texts.read_jsonl(path))
    with pytest.raises(ValueError, match=r"no such file; see `data\.path`"):
        texts.read_text(tmp_path / "absent.txt")


def test_jsonl_documents_have_their_id_or_their_line(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a", "id": 7}\n\n{"text": "b"}\n')
    assert list(texts.read_jsonl(path)) == [("7", "a"), ("line 3", "b")]


def test_only_a_newline_ends_a_line_of_jsonl(tmp_path):
    """Unicode has other ends of lines; JSON may hold them as they are."""
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n{"text": "d"}', encoding="utf-8")
    assert list(texts.read_jsonl(path)) == [("line 1", "a\u2028b\u0085c"), ("line 2", "d")]


@pytest.fixture
def data_set(tmp_path):
    """FineWeb-Edu's layout: two parquet shards and a README.md that names the subset."""
    folder = tmp_path / "data set"
    (folder / "sample/10BT").mkdir(parents=True)
    for shard in range(2):
        ids = [f"<urn:uuid:{shard}-{i}>" for i in range(20)]
        table = pa.table({"text": [f"{name} text " * 60 for name in ids], "id": ids})
        pq.write_table(table, folder / f"sample/10BT/00{shard}_00000.parquet")
    subset = {"config_name": "sample-10BT", "data_files": "sample/10BT/*"}
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': [subset]})}\n---\n")
    return folder


def _read_hub(hub, cache, subset="sample-10BT", revision=COMMIT):
    program = (
        "import sys, json; from moe_outliers import texts\n"
        "try: print(json.dumps([name for name, _ in texts.read_hub(*sys.argv[1:])]))\n"
        "except ValueError as error: print('refused:', error)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "HuggingFaceFW/fineweb-edu", subset, revision],
        env=os.environ | hub.environment(cache),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.waits
def test_a_data_set_is_streamed_from_the_hub_at_its_commit(data_set, tmp_path):
    with Hub(datasets={"HuggingFaceFW/fineweb-edu": data_set}) as hub:
        ids = json.loads(_read_hub(hub, tmp_path / "cache"))
        assert ids == [f"<urn:uuid:{shard}-{i}>" for shard in range(2) for i in range(20)]
        assert not any("/main/" in path for _, path in hub.requests)


@pytest.mark.waits
@pytest.mark.fault(81)
def test_an_unknown_subset_or_commit_of_a_data_set_is_refused(data_set, tmp_path):
    with Hub(datasets={"HuggingFaceFW/fineweb-edu": data_set}) as hub:
        told = _read_hub(hub, tmp_path / "cache", subset="sample-9BT")
        assert told.startswith("refused: data set HuggingFaceFW/fineweb-edu")
        assert "sample-10BT" in told
        told = _read_hub(hub, tmp_path / "other", revision="d" * 40)
        assert told.startswith("refused: data set HuggingFaceFW/fineweb-edu")


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_refused_with_the_ways_out(tmp_path):
    with Hub() as hub:
        pass
    told = _read_hub(hub, tmp_path / "cache")
    assert told.startswith("refused: data set HuggingFaceFW/fineweb-edu")
    assert "`moe-outliers doctor`" in told
    assert "data.source" in told
