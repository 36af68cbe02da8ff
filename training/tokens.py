"""Documents to tokens: a byte-level BPE of 2,048 ids, and the packed ids of both files.

    python training/tokens.py FOLDER

Reads FOLDER/train.jsonl and heldout.jsonl (training/text.py) and writes tokenizer.json, train.npy
and heldout.npy (uint16). Id 0, `<|endoftext|>`, stands between documents and before each window.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

Ids = np.ndarray[tuple[int], np.dtype[np.uint16]]

VOCABULARY = 2_048

END = "<|endoftext|>"

MOST = 30_000_000
"""Tokens for training; what is more is left out, evenly."""


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file of documents."""
    with path.open() as file:
        for line in file:
            yield json.loads(line)["text"]


def trained(folder: Path) -> Tokenizer:
    """Return a tokenizer made from every fifth document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    every = (text for number, text in enumerate(texts(folder / "train.jsonl")) if number % 5 == 0)
    tokenizer.train_from_iterator(every, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def packed(tokenizer: Tokenizer, path: Path, most: int) -> Ids:
    """Return the ids of all documents of a file, each behind the id of END, cut to `most` ids."""
    documents = [
        np.asarray(encoded.ids, np.uint16) for encoded in tokenizer.encode_batch(list(texts(path)))
    ]
    order = np.random.default_rng(0).permutation(len(documents))
    return np.concatenate([documents[index] for index in order])[:most]


def main(folder: Path) -> None:
    """Write the tokenizer and both arrays."""
    tokenizer = trained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("train", "heldout"):
        ids = packed(tokenizer, folder / f"{name}.jsonl", MOST)
        np.save(folder / f"{name}.npy", ids)
        print(f"{name}: {ids.size:,} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
