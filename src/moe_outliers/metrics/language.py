"""How well the model predicts the text (M20), in units that do not depend on the tokenizer."""

import numpy as np
import pyarrow as pa

from moe_outliers.stats import Array
from moe_outliers.storage import parquet

SCHEMA = parquet.schema(
    model=(pa.string(), "slug of the table of models"),
    sequence=(pa.int32(), "index of the sequence"),
    end_byte=(pa.int32(), "byte of the text where the predicted token ends"),
    nll_nat=(pa.float64(), "negative log-likelihood of the token, nats"),
)
"""One row a predicted token."""


def span_bits_per_byte(ends: Array, nll: Array, start: int, stop: int) -> float:
    """Bits per byte of the text between two token ends.

    Args:
        ends: (token,), byte where each predicted token ends, not falling.
        nll: (token,), nats.
        start: byte where a token ends.
        stop: byte where a later token ends.

    Returns:
        The bits of the tokens that end in (start, stop], over its bytes; NaN for no bytes.
    """
    if stop <= start:
        return float("nan")
    inside = (ends > start) & (ends <= stop)
    return float(nll[inside].sum() / np.log(2) / (stop - start))


def common_span(ends: list[Array]) -> tuple[int, int]:
    """Return the first and the last byte where a token of every model ends; (0, 0) for none.

    Between them every model has predicted exactly the same text.

    Args:
        ends: of each model, the byte where each token of one sequence ends, the first included.
    """
    common = set(ends[0].tolist()).intersection(*(other.tolist() for other in ends[1:]))
    return (min(common), max(common)) if common else (0, 0)
