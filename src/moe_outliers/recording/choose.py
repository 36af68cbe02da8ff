"""Chooses how activations are reduced on a device: by GPU kernels where they can be used."""

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from moe_outliers.recording.plain import PlainReducer
from moe_outliers.recording.reducer import Keep, Reducer

KERNELS = True
"""Whether kernels are used where they can be."""

MOST_ALPHAS = 14
"""Thresholds that the kernels can count."""


def reducer(
    keep: Keep,
    delimiter: Tensor,
    alphas: Sequence[float],
    kernels: bool | None,
) -> Reducer:
    """Choose the reducer for the device that holds the delimiter mask.

    Args:
        keep: stores the results.
        delimiter: (sequence, position), bool, the delimiter positions.
        alphas: thresholds, ascending.
        kernels: whether by GPU kernels; None: where they can be used.
    """
    if kernels is None:
        kernels = len(alphas) <= MOST_ALPHAS and usable(delimiter.device)
    if not kernels:
        return PlainReducer(keep, delimiter, alphas)
    from moe_outliers.recording.gpu import batched

    return batched.BatchedReducer(keep, delimiter, alphas)


def usable(device: torch.device) -> bool:
    """Tell whether kernels can be used on a device: a GPU with Triton that passes the self-test."""
    there = importlib.util.find_spec("triton") is not None
    return KERNELS and device.type == "cuda" and there and agree(str(device))


@cache
def agree(device: str) -> bool:
    """Compare the kernels with plain torch on a device, once.

    Where a driver or a version of Triton does not compile them, or they count wrongly, plain torch
    is used: that costs time, not a result.
    """
    try:
        from moe_outliers.recording.gpu import batched

        batched.compare_with_plain(device)
    except Exception as error:  # whatever a compiler or a driver raises
        logging.warning("the GPU kernels are not used on this machine: %s", error)
        return False
    return True
