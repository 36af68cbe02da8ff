"""Mutated files: no checker accepts one, and no parser fails other than by a ValueError."""

import json
import random
import time

import pytest

from moe_outliers import checks, files, job, parquet, receipts, statistics, tokenize
from moe_outliers.receipts import Expected, Pair

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
def originals(undisturbed, tmp_path_factory):
    """One file of each type, with the checker and the parser that it goes through."""
    folder = tmp_path_factory.mktemp("fuzz")
    statistics_file, receipt_file = undisturbed.pair("small-olmoe", 1)
    receipt = receipts.read(receipt_file)
    expected = Expected(
        receipt.model,
        receipt.repo,
        receipt.revision,
        receipt.batch,
        receipt.sequences,
        receipt.settings,
    )
    for source in (statistics_file, receipt_file):
        (folder / source.name).write_bytes(source.read_bytes())
    pair = Pair(folder / "01.nc", folder / "01.json", expected)
    tokens = undisturbed.folder / "results/tokens/small-olmoe.parquet"
    return {
        "statistics": (
            pair.statistics,
            statistics_file,
            lambda: receipts.fault(*pair),
            statistics.read,
        ),
        "receipt": (pair.receipt, receipt_file, lambda: receipts.fault(*pair), receipts.read),
        "tokens": (
            folder / "tokens.parquet",
            tokens,
            None,
            lambda path: parquet.read(path, tokenize.SCHEMA),
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


def _recorded(path, monkeypatch):
    """Record the digest of a product, and return its checker."""
    monkeypatch.chdir(path.parent)
    product = type(path)(path.name)
    job.record(product)
    return lambda: checks.product_fault(product, files.sha256)


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
    job.record(product)
    record = job.record_path(product)
    original = record.read_bytes()
    path.write_bytes(source.read_bytes() + b" ")
    draw = random.Random(5)
    for _ in range(500):
        record.write_bytes(_mutate(original, draw, text=True))
        assert checks.product_fault(product, files.sha256) is not None
    record.write_text(json.dumps({"path": "other", "sha256": job.digest(product)}))
    assert "is of other" in checks.product_fault(product, files.sha256)
