"""Which way activations are reduced on a device: by GPU kernels, where they can be and agree."""

import importlib.util
import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from moe_outliers.recording.plain import PlainReducer
from moe_outliers.recording.reducer import Keep, Reducer
from moe_outliers.recording.sites import Family

KERNELS = True
"""Whether kernels are used where they can be."""

MOST_ALPHAS = 14
"""Thresholds that the kernels can count."""


def reducer(
    keep: Keep,
    delimiter: Tensor,
    alphas: Sequence[float],
    family: Family,
    kernels: bool | None,
) -> Reducer:
    """Choose how to reduce on the device where the delimiters are.

    Args:
        keep: takes the results.
        delimiter: (sequence, position), bool, the delimiter positions.
        alphas: thresholds, ascending.
        family: of the model.
        kernels: by kernels; None: where they can be used.
    """
    if kernels is None:
        kernels = len(alphas) <= MOST_ALPHAS and usable(delimiter.device)
    if not kernels:
        return PlainReducer(keep, delimiter, alphas, family)
    from moe_outliers.recording.gpu import batched

    return batched.BatchedReducer(keep, delimiter, alphas, family)


def usable(device: torch.device) -> bool:
    """Tell whether kernels can be used on a device: a GPU with Triton, where they are right."""
    there = importlib.util.find_spec("triton") is not None
    return KERNELS and device.type == "cuda" and there and agree(str(device))


@cache
def agree(device: str) -> bool:
    """Tell whether the kernels give on a device what plain torch gives.

    A driver or a Triton on which they do not compile, or count wrongly, costs time, not a result:
    plain torch is used there.
    """
    try:
        from moe_outliers.recording.gpu import batched

        batched.compare_with_plain(device)
    except Exception as error:  # whatever a compiler or a driver raises
        logging.warning("the GPU kernels are not used on this machine: %s", error)
        return False
    return True
