"""Chooses the texts that every model reads: once, before any tokenizer is used."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import pyarrow as pa

BYTES_PER_TOKEN = 8
"""Bytes that a document must have for each token, so that it has enough tokens by any tokenizer."""

POOL = 1024
"""Documents are drawn from so many that are long enough: a stream is not read to its end."""

BUNDLED = "us-constitution.txt"

SCHEMA = pa.schema([("document", pa.string()), ("text", pa.string()), ("sha256", pa.string())])

Document = tuple[str, str]
"""Id and text."""


def draw(documents: Iterable[Document], *, sequences: int, tokens: int, seed: int) -> pa.Table:
    """Choose one document for each sequence.

    Documents of fewer than 8 bytes a token, and repeated texts, are skipped; of the first 1,024
    others those with the smallest sha256(seed, id) are taken. So more sequences add documents and
    change none of the first.

    Returns:
        One row a sequence: document, text, sha256 of the text.

    Raises:
        ValueError: if there are too few; the message says how many are missing.
    """
    least = BYTES_PER_TOKEN * tokens
    pool: dict[str, Document] = {}
    long_enough = (document for document in documents if len(document[1].encode()) >= least)
    for document in long_enough:
        pool.setdefault(_sha256(document[1]), document)
        if len(pool) == POOL:
            break
    if len(pool) < sequences:
        raise ValueError(
            f"too little text: {sequences} documents of at least {least} bytes are needed "
            f"(8 a token), {len(pool)} found, {sequences - len(pool)} missing"
        )
    order = sorted(pool.items(), key=lambda item: _sha256(f"{seed}\0{item[1][0]}"))
    return _table([(name, text, digest) for digest, (name, text) in order[:sequences]])


def cut(name: str, text: str, *, sequences: int, tokens: int) -> pa.Table:
    """Cut one text into equal ranges of bytes, one for each sequence, and call it one document.

    Returns:
        One row a sequence: document, text, sha256 of the text.

    Raises:
        ValueError: if the text is too short; the message says how much is missing.
    """
    data = text.encode()
    need = BYTES_PER_TOKEN * tokens * sequences
    if len(data) < need:
        raise ValueError(
            f"{name}: too little text: {sequences} sequences of {tokens} tokens need {need} bytes "
            f"(8 a token), it has {len(data)}, {need - len(data)} are missing"
        )
    edges = [_start_of_character(data, len(data) * i // sequences) for i in range(sequences + 1)]
    ranges = [data[a:b].decode() for a, b in itertools.pairwise(edges)]
    return _table([(name, part, _sha256(part)) for part in ranges])


def of_strings(texts: str | Iterable[str]) -> pa.Table:
    """Make a table of texts that are at hand, one row each: document, text, sha256 of the text."""
    strings = [texts] if isinstance(texts, str) else list(texts)
    return _table([(f"text {number}", t, _sha256(t)) for number, t in enumerate(strings)])


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        ValueError: if it is missing, empty or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; see `data.path` in config/config.yaml")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    if not text.strip():
        raise ValueError(f"{path}: the text is empty")
    return text


def read_bundled() -> str:
    """Return the text that ships with the package; data/README.md names its source."""
    return (resources.files("moe_outliers") / "data" / BUNDLED).read_text(encoding="utf-8")


def read_jsonl(path: Path) -> Iterator[Document]:
    """Read documents from a JSONL file: the key `text`, and `id` or else the line number.

    Raises:
        ValueError: if a line is no JSON object with a text.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: no JSON object with a key `text`: {error!r}"
            ) from None
        if not isinstance(text, str):
            raise ValueError(f"{path}, line {number}: `text` is no string")
        yield str(entry.get("id", f"line {number}")), text


def read_hub(name: str, subset: str, revision: str) -> Iterator[Document]:
    """Stream documents of a data set of the hub, at a pinned commit: its columns `text` and `id`.

    Raises:
        ValueError: if there is no such data set, commit or column; the message names it.
    """
    import datasets

    where = f"data set {name} {subset} at {revision}"
    try:
        rows = datasets.load_dataset(
            name, subset or None, split="train", revision=revision, streaming=True
        )
        for number, row in enumerate(rows):
            if "text" not in row:
                raise ValueError(f"it has no column `text`, but {', '.join(row)}")
            yield str(row.get("id", f"row {number}")), row["text"]
    except ConnectionError as error:
        raise ValueError(
            f"{where}: {error}: check the network (`moe-outliers doctor`), "
            "or read a file: data.source in config/config.yaml"
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _table(rows: list[tuple[str, str, str]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=SCHEMA)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _start_of_character(data: bytes, place: int) -> int:
    """Move back to the first byte of the UTF-8 character at a place."""
    while place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
