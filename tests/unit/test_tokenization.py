"""Ids are taken once from the text, with the place in the text where each ends."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import transformers
from support.hub import COMMIT, Fault, Hub
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from moe_outliers import texts, tokenization


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE with a special token that its post-processor puts first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    made.train_from_iterator([texts.read_bundled()], trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return made


def _window(tokenizer, text, bos="none", tokens=64):
    table = texts.cut("some.txt", text, sequences=2, tokens=tokens)
    return tokenization.windows(table, tokenizer, tokens=tokens, bos=bos), table


def test_each_id_ends_at_its_byte_of_the_text(tokenizer):
    windows, table = _window(tokenizer, "Ünïcödé, then. Words,\nlines.\n" * 60)
    for window, text in zip(windows.to_pylist(), table["text"].to_pylist(), strict=True):
        assert len(window["ids"]) == 64
        covered = text.encode()[: window["ends"][-1]].decode()
        assert tokenizer.encode(covered, add_special_tokens=False).ids[:60] == window["ids"][:60]
        assert window["ends"] == sorted(window["ends"])
        assert window["ids_sha256"] == tokenization.ids_sha256(window["ids"])


def test_delimiters_are_stops_commas_and_newlines_after_the_first_position(tokenizer):
    windows, _ = _window(tokenizer, ". a, b.\n\nc d " * 100)
    for window in windows.to_pylist():
        decoded = [tokenizer.decode([i], skip_special_tokens=False) for i in window["ids"]]
        expected = [
            i > 0 and d.strip(" ") != "" and not d.strip(" .,\n") for i, d in enumerate(decoded)
        ]
        assert window["delimiter"] == expected
        assert any(expected)
        assert not window["delimiter"][0]


def test_no_special_token_is_added_unless_asked_for(tokenizer):
    plain, _ = _window(tokenizer, "some words. " * 200)
    begun, _ = _window(tokenizer, "some words. " * 200, bos="model")
    first = tokenizer.token_to_id("<s>")
    assert first not in plain["ids"][0].as_py()
    assert begun["ids"][0].as_py() == [first, *plain["ids"][0].as_py()[:-1]]
    assert begun["ends"][0].as_py()[0] == 0


def test_too_few_ids_name_the_document():
    single = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    table = texts.cut("some.txt", "x" * 2048, sequences=2, tokens=64)
    with pytest.raises(
        ValueError, match=r"document some\.txt \(sequence 0\): 1 ids, 64 are needed"
    ):
        tokenization.windows(table, single, tokens=64, bos="none")


def _loaded(tokenizer, folder, kind):
    """Load a tokenizer as the pipeline does, and as AutoTokenizer does by the name of its class."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    (folder / "config.json").write_text('{"model_type": "qwen3_moe"}')
    own = tokenization.load(folder / "tokenizer.json")
    return own, transformers.AutoTokenizer.from_pretrained(folder)


SPELT = "We, the <s>People<s>\n\n of 1787 \u2014 na\u00efve  words. "


def test_a_text_that_spells_a_special_token_holds_its_letters(tokenizer, tmp_path):
    own, auto = _loaded(tokenizer, tmp_path, "TokenizersBackend")
    windows, table = _window(own, SPELT * 40)
    special = own.token_to_id("<s>")
    for window, text in zip(windows.to_pylist(), table["text"].to_pylist(), strict=True):
        assert special not in window["ids"]
        assert window["ends"] == sorted(window["ends"])
        split = auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert window["ids"] == split[:64]
        assert special in auto(text, add_special_tokens=False)["input_ids"]
    begun, _ = _window(own, SPELT * 40, bos="model")
    assert [ids.count(special) for ids in begun["ids"].to_pylist()] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "same"),
    [("TokenizersBackend", True), ("LlamaTokenizer", True), ("GPT2Tokenizer", False),
     ("Qwen2Tokenizer", False)],
)  # fmt: skip
def test_the_file_is_the_tokenizer_where_a_class_would_build_another(
    kind, same, tokenizer, tmp_path
):
    """Some classes of transformers take the words of the file, and split texts in their own way."""
    spaced = Tokenizer.from_str(tokenizer.to_str())
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    own, auto = _loaded(spaced, tmp_path, kind)
    text = SPELT.replace("<s>", "") * 3
    ids = own.encode(text, add_special_tokens=False).ids
    assert ids == spaced.encode(text, add_special_tokens=False).ids
    assert (auto(text, add_special_tokens=False)["input_ids"] == ids) == same


@pytest.mark.fault(80)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: no tokenizer"):
        tokenization.load(path)


def _fetch(server, cache):
    """Fetch the tokenizer of a repository in a process of its own; return what it said."""
    program = (
        "from moe_outliers.checkpoint import hub\n"
        f"try: print(hub.tokenizer('org/model', {COMMIT!r}).read_text())\n"
        "except ValueError as error: print('refused:', error)"
    )
    environment = os.environ | server.environment(cache)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.waits
@pytest.mark.fault(68, 72, 80)
@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([Fault("flip", "tokenizer", times=1)], '{"a": 1}'),
        ([Fault("flip", "tokenizer", times=9)], "refused: .* tokenizer.json came damaged"),
        ([Fault("429", "/api/", headers={"Retry-After": "2"})], '{"a": 1}'),
        ([Fault("page", "/api/")], r"refused: http://127.* did not answer as the hub does"),
    ],
    ids=["damaged once", "damaged for ever", "too many requests", "a login page"],
)
def test_a_tokenizer_is_the_one_that_the_hub_lists_or_none(faults, told, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/tokenizer.json").write_text('{"a": 1}')
    with Hub(
        models={"org/model": tmp_path / "repo"}, faults=[replace(f) for f in faults]
    ) as server:
        assert re.match(told, _fetch(server, tmp_path / "cache"))
        assert all(fault.fired for fault in server.faults)
        if faults[0].kind == "429":
            assert server.moments[1] - server.moments[0] >= 2


@pytest.mark.waits
def test_a_repository_without_a_tokenizer_or_with_a_giant_one_is_refused(tmp_path):
    (tmp_path / "repo").mkdir()
    with Hub(models={"org/model": tmp_path / "repo"}) as server:
        assert "has no tokenizer.json" in _fetch(server, tmp_path / "cache")
        with (tmp_path / "repo/tokenizer.json").open("wb") as file:
            file.truncate(200_000_001)
        assert "200000001 bytes: not fetched" in _fetch(server, tmp_path / "cache")
        assert not server.bytes_sent
