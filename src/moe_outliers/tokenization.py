"""Turns texts into token ids, once for each model; they are never decoded and encoded again."""

import hashlib
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

SCHEMA = pa.schema(
    [
        ("sequence", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("delimiter", pa.list_(pa.bool_())),
        ("document", pa.string()),
        ("text_bytes", pa.int64()),
        ("text_sha256", pa.string()),
        ("ids_sha256", pa.string()),
    ]
)
"""One row a sequence; `ends` is the byte where each id ends; text_* belong to the whole text."""

DELIMITERS = frozenset(".,\n")


def load(path: Path) -> Tokenizer:
    """Load a tokenizer.json, with truncation and padding off.

    The file is the tokenizer: whatever else a class of transformers would change of it is left
    out. A text that spells a special token, such as `</s>`, holds those letters and no token.

    Raises:
        ValueError: if it is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: no tokenizer: {error}") from None
    return plain(tokenizer)


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """Turn off truncation and padding of a tokenizer, and return it."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def windows(texts: pa.Table, tokenizer: Tokenizer, *, tokens: int, bos: str) -> pa.Table:
    """Take the first ids of each text.

    Args:
        texts: as `texts.draw` and `texts.cut` return them.
        tokenizer: the model's.
        tokens: ids of a window.
        bos: `none` for no special token, `model` for those that the tokenizer adds by itself.

    Returns:
        One row a sequence, of SCHEMA. A delimiter is a position from 1 on whose own decoded text,
        spaces stripped, is non-empty and only full stops, commas or newlines.

    Raises:
        ValueError: if a text has too few ids; the message names its document.
    """
    rows = []
    for sequence, text in enumerate(texts.to_pylist()):
        encoding = tokenizer.encode(text["text"], add_special_tokens=bos == "model")
        ids = encoding.ids[:tokens]
        if len(ids) < tokens:
            raise ValueError(
                f"document {text['document']} (sequence {sequence}): {len(ids)} ids, "
                f"{tokens} are needed; use longer documents or fewer tokens"
            )
        byte = list(accumulate((len(c.encode()) for c in text["text"]), initial=0))
        rows.append(
            {
                "sequence": sequence,
                "ids": ids,
                "ends": [byte[end] for _, end in encoding.offsets[:tokens]],
                "delimiter": [i > 0 and _is_delimiter(tokenizer, ids[i]) for i in range(tokens)],
                "document": text["document"],
                "text_bytes": len(text["text"].encode()),
                "text_sha256": text["sha256"],
                "ids_sha256": ids_sha256(ids),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def ids_sha256(ids: list[int]) -> str:
    """Hash token ids, as little-endian 32-bit integers."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def _is_delimiter(tokenizer: Tokenizer, token: int) -> bool:
    text = tokenizer.decode([token], skip_special_tokens=False).strip(" ")
    return bool(text) and set(text) <= DELIMITERS
