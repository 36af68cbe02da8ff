"""Mutated files: no checker accepts one, and no parser fails other than by a ValueError."""

import json
import random
import time

import pytest

from moe_outliers import texts, tokenization
from moe_outliers.storage import digests, files, parquet, receipts, statistics_file
from moe_outliers.storage.receipts import Expected, Pair
from moe_outliers.workflow import damage, paths, script

CASES = 2_000
MANY = 100_000

VALUES = [
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 400,
    "null",
    "true",
    '"\\ud800"',
    "[" * 3000 + "]" * 3000,
    "{}",
    "-1",
    '""',
]
"""What JSON may hold where something else is expected."""


def _mutate(data: bytes, draw: random.Random, text: bool) -> bytes:
    """Flip, cut, splice, repeat or lengthen; in JSON also put in hostile values and double keys."""
    place, other, width = (draw.randrange(n) for n in (len(data), len(data), 64))
    lines = data.splitlines(keepends=True)
    line = draw.randrange(len(lines))
    key, colon, _ = lines[line].partition(b":")
    flipped = bytes([data[place] ^ (1 << draw.randrange(8))])
    mutations = [
        data[:place] + flipped + data[place + 1 :],
        data[:place],
        data[:place] + data[other : other + width] + data[place + width :],
        data[:place] + draw.randbytes(width) + data[place:],
        data[:place] + data[place + width :],
    ]
    if text:
        value = draw.choice(VALUES).encode()
        mutations.append(b"".join([*lines[:line], key, colon, value, b",\n", *lines[line + 1 :]]))
        mutations.append(b"".join([*lines[:line], lines[line], *lines[line:]]))
    return draw.choice(mutations)


@pytest.fixture(scope="module")
def pair(undisturbed, tmp_path_factory):
    """A batch that is whole, in a folder of its own."""
    folder = tmp_path_factory.mktemp("fuzz")
    whole, receipt_file = undisturbed.pair("small-olmoe", 1)
    receipt = receipts.read(receipt_file)
    expected = Expected(
        receipt.model,
        receipt.repo,
        receipt.revision,
        receipt.batch,
        receipt.sequences,
        receipt.settings,
    )
    for source in (whole, receipt_file):
        (folder / source.name).write_bytes(source.read_bytes())
    return Pair(folder / "01.nc", folder / "01.json", expected)


@pytest.fixture(scope="module")
def originals(undisturbed, pair):
    """One file of each type, with the checker and the parser that it goes through."""
    folder = pair.statistics.parent
    whole, receipt_file = undisturbed.pair("small-olmoe", 1)
    tokens = undisturbed.folder / "results/tokens/small-olmoe.parquet"
    return {
        "statistics": (
            pair.statistics,
            whole,
            lambda: receipts.fault(*pair),
            statistics_file.read,
        ),
        "receipt": (pair.receipt, receipt_file, lambda: receipts.fault(*pair), receipts.read),
        "tokens": (
            folder / "tokens.parquet",
            tokens,
            None,
            lambda path: parquet.read(path, tokenization.SCHEMA),
        ),
        "table": (
            folder / "texts.parquet",
            undisturbed.folder / "results/texts.parquet",
            None,
            lambda path: parquet.read(path, texts.SCHEMA),
        ),
        "verdict": (
            folder / "verdict.json",
            undisturbed.folder / "results/verify/small-olmoe.json",
            None,
            files.read_json,
        ),
    }


def _fuzz(originals, monkeypatch, cases):
    parsed = 0
    for number, (name, (path, source, checker, parser)) in enumerate(originals.items()):
        draw = random.Random(number)
        original = source.read_bytes()
        path.write_bytes(original)
        check = checker or _recorded(path, monkeypatch)
        assert check() is None, name
        for case in range(cases // len(originals)):
            mutated = _mutate(original, draw, text=path.suffix == ".json")
            if mutated == original:
                continue
            path.write_bytes(mutated)
            assert check() is not None, f"{name}: mutation {case} was accepted"
            if case % 10 == 0:
                try:
                    parser(path)
                except ValueError:
                    parsed += 1
        path.write_bytes(original)
        assert check() is None, name
    assert parsed


FREE = {"device", "dtype", "attempt", "plan", "pod", "versions", "checkpoint"}
"""Keys of a receipt that say how a batch was made; the others must be what is expected."""


@pytest.mark.fault(91, 92)
def test_no_receipt_that_is_changed_and_signed_again_is_accepted(pair):
    original = pair.receipt.read_bytes()
    fields = json.loads(original)
    ids = " ".join(["0" * 64, *fields["ids_sha256"]])
    assert not damage.pair_faults([pair], files.sha256, ids)
    deep = [[]]
    for _ in range(100):
        deep = [deep]
    hostile = [None, True, -1, 0, 7, 10**400, 1e300, "", "0" * 64, "\x1b[2J", [], [7], {}, deep]
    for key in sorted(set(fields) - {"digest"}):
        for value in (value for value in hostile if value != fields[key]):
            changed = fields | {key: value}
            del changed["digest"]
            changed["digest"] = files.sha256_of(changed)
            pair.receipt.write_bytes(files.json_bytes(changed))
            found = damage.pair_faults([pair], files.sha256, ids)
            assert found or key in FREE, f"{key}: {value!r} was accepted"
    pair.receipt.write_bytes(original)


def _recorded(path, monkeypatch):
    """Record the digest of a product, and return its checker."""
    monkeypatch.chdir(path.parent)
    product = type(path)(path.name)
    script.record(product)
    return lambda: damage.product_fault(product, files.sha256)


@pytest.mark.fault(90, 91, 92, 93)
def test_no_mutated_file_is_accepted(originals, monkeypatch):
    _fuzz(originals, monkeypatch, CASES)


@pytest.mark.fault(90, 91, 92, 93)
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_mutated_file_of_very_many_is_accepted(originals, monkeypatch):
    start = time.monotonic()
    _fuzz(originals, monkeypatch, MANY)
    print(f"{MANY} mutations in {time.monotonic() - start:.0f} s")


def test_a_recorded_digest_that_is_mutated_never_vouches_for_another_file(originals, monkeypatch):
    path, source, _, _ = originals["verdict"]
    monkeypatch.chdir(path.parent)
    path.write_bytes(source.read_bytes())
    product = type(path)(path.name)
    script.record(product)
    record = paths.record_of(product)
    original = record.read_bytes()
    path.write_bytes(source.read_bytes() + b" ")
    draw = random.Random(5)
    for _ in range(500):
        record.write_bytes(_mutate(original, draw, text=True))
        assert damage.product_fault(product, files.sha256) is not None
    record.write_text(json.dumps({"path": "other", "sha256": digests.digest(product)}))
    assert "is of other" in damage.product_fault(product, files.sha256)
