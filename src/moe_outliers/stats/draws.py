"""Random generators that depend on the seed, their purpose and the sequences, and on nothing else.

Sequences are identified by the digests of their token ids and sorted by these, so that neither the
order of the files nor the grouping of sequences into files changes a number.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def order(ids_sha256: Sequence[str]) -> NDArray[np.intp]:
    """Return the order of the sequences in which all draws take them, as indices."""
    return np.argsort(np.array(ids_sha256, dtype=str), kind="stable")


def generator(seed: int, purpose: str, ids_sha256: Sequence[str]) -> np.random.Generator:
    """Make the generator of one purpose.

    Args:
        seed: the seed of the sweep.
        purpose: names the draw, so that two draws never share their numbers.
        ids_sha256: digests of the sequences that are drawn from, in any order.
    """
    text = "\n".join([purpose, *sorted(ids_sha256)])
    words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])
