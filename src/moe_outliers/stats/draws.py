"""Random draws that depend on the seed, their purpose and the sequences, and on nothing else.

Sequences are named by the digests of their token ids and taken in the order of these, so that
neither the order of the files nor how sequences are grouped into them changes a number.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def order(ids_sha256: Sequence[str]) -> NDArray[np.intp]:
    """Return the places of the sequences in the order in which all draws take them."""
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
