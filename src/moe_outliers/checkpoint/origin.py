"""A model as a user names it: its repository and commit, or its folder; its tokenizer and ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from moe_outliers import tokenization
from moe_outliers.checkpoint import hub
from moe_outliers.texts import of_strings


def origin_of(model: str | Path, revision: str | None) -> tuple[str, str]:
    """Return repository and commit of a model on the hub; of a folder, its path and `local`.

    Raises:
        ValueError: if there is no such folder or repository.
    """
    if Path(model).is_dir():
        return str(model), "local"
    if isinstance(model, Path) or str(model).startswith((".", "/", "~")):
        raise ValueError(f"{model}: no such folder; a repository of the hub is named OWNER/NAME")
    config = hub.fetch(model, revision or "main", "config.json")
    return model, config.parent.name  # the hub's client keeps each commit in a folder of its name


def tokenize(
    model: Any,
    texts: str | Sequence[str] | pa.Table,
    *,
    tokens: int = 2048,
    bos: str = "none",
    revision: str | None = None,
    tokenizer: Any = None,
) -> pa.Table:
    """Turn texts into a model's token ids: what `mo.record` runs and `mo.measure` reads.

    Args:
        model: a repository of the hub, or a folder with a checkpoint; not read if there is a
            tokenizer.
        texts: the texts, or a table of texts such as results/texts.parquet.
        tokens: ids of each text, 64 to 65,535, from its start.
        bos: none for no special token, model for those that the tokenizer adds by itself.
        revision: commit, branch or tag on the hub; None: its main branch as it is now.
        tokenizer: path of a tokenizer.json, or a tokenizer of tokenizers or transformers (fast);
            None: the model's.

    Returns:
        One row a sequence: sequence, ids, ends (byte of the text where each id ends), delimiter,
        document, text_bytes, text_sha256, ids_sha256.

    Raises:
        ValueError: if a text has too few ids, or there is no tokenizer.
    """
    if not 64 <= tokens <= 65_535:
        raise ValueError(f"tokens is {tokens}: it must be 64 to 65535, the length of a sequence")
    if bos not in ("none", "model"):
        raise ValueError(f"bos is {bos!r}: it must be none or model")
    table = texts if isinstance(texts, pa.Table) else of_strings(texts)
    found = _tokenizer(model, revision, tokenizer)
    return tokenization.windows(table, found, tokens=tokens, bos=bos)


def _tokenizer(model: Any, revision: str | None, given: Any) -> Tokenizer:
    if given is not None and not isinstance(given, str | Path):
        plain = getattr(given, "backend_tokenizer", given)
        if not isinstance(plain, Tokenizer):
            raise ValueError(f"tokenizer is a {type(given).__name__}: a fast one is needed")
        return tokenization.plain(
            Tokenizer.from_str(plain.to_str())
        )  # the given one stays as it is
    if given is not None:
        return tokenization.load(Path(given))
    if not isinstance(model, str | Path):
        raise ValueError("a loaded model comes without its tokenizer: give `tokenizer`")
    repo, commit = origin_of(model, None if revision == "local" else revision)
    local = commit == "local"
    path = Path(repo, "tokenizer.json") if local else hub.tokenizer(repo, commit)
    return tokenization.load(path)
