"""Dequantises weights on the device that holds them, part by part to bound the memory.

The results are bit for bit those of transformers.
"""

import importlib.util
import logging
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

PART_ELEMENTS = 1 << 26
"""Elements that are computed at a time: bounds the temporaries, and changes no number."""

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen numbers of E2M1; the four bits of a value are its index."""

_EXPONENT_BIAS = 127


def mxfp4(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Dequantise the experts of a block that are stored as MXFP4.

    Args:
        blocks: (expert, row, group, 16), uint8: two values a byte, the lower four bits first; a
            group of 32 values shares one scale.
        scales: (expert, row, group), uint8: exponents of two, biased by 127.
        out: (expert, column, row), where the transposed weights go; any floating type.

    Source: Open Compute Project, Microscaling Formats v1.0 (2023), section 5.
    """
    if blocks.is_cuda and out.is_contiguous() and _kernel_agrees(blocks.device, out.dtype):
        from moe_outliers.engine import dequantise_kernels

        dequantise_kernels.mxfp4(blocks, scales, out)
    else:
        _mxfp4(blocks, scales, out)


def _mxfp4(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Dequantise as `mxfp4`, in plain torch."""
    pairs = _pairs(out.dtype, blocks.device)
    experts, rows, groups, half = blocks.shape
    for part in _parts(experts, blocks[0].numel() * 2):
        bytes_ = blocks[part].reshape(-1).int()
        values = pairs.index_select(0, bytes_).view(-1, rows, groups, 2 * half)
        del bytes_
        exponents = scales[part].int() - _EXPONENT_BIAS
        torch.ldexp(values, exponents[..., None], out=values)
        out[part] = values.view(-1, rows, groups * 2 * half).transpose(1, 2)


def fp8(values: Tensor, scales: Tensor, block: tuple[int, int], out: Tensor) -> None:
    """Dequantise a matrix whose rectangular blocks share one scale each.

    Args:
        values: (row, column), an 8-bit floating type.
        scales: one for each block, row of blocks by row of blocks: floating, or uint8, the
            exponents of two, biased by 127.
        block: rows and columns of a block; the last ones may have fewer.
        out: (row, column), where the weights go; any floating type.
    """
    (rows, columns), (tall, wide) = values.shape, block
    if scales.dtype == torch.uint8:
        scales = torch.exp2(scales.float() - _EXPONENT_BIAS)
    grid = scales.float().reshape(-(-rows // tall), -(-columns // wide))
    for part in _parts(len(grid), tall * columns):
        here = slice(part.start * tall, min(part.stop * tall, rows))
        weights = values[here].float()
        weights *= _spread(_spread(grid[part], wide, columns).T, tall, len(weights)).T
        out[here] = weights


def _spread(scales: Tensor, times: int, length: int) -> Tensor:
    """Repeat each column so many times; leave out what is beyond a length."""
    repeated = scales[:, :, None].expand(-1, -1, times)
    return repeated.reshape(len(scales), -1)[:, :length]


@cache
def _kernel_agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Dequantise every byte with every scale by the kernel and in plain torch, and compare."""
    if importlib.util.find_spec("triton") is None:
        return False
    byte = torch.arange(256, dtype=torch.uint8, device=device)
    blocks = byte.view(1, 16, 1, 16).expand(2, 16, 256, 16).reshape(2, 64, 64, 16)
    scales = byte.repeat(2 * 16).view(2, 64, 64)
    wanted, found = (torch.empty((2, 64 * 32, 64), dtype=dtype, device=device) for _ in range(2))
    _mxfp4(blocks, scales, wanted)
    try:
        from moe_outliers.engine import dequantise_kernels

        dequantise_kernels.mxfp4(blocks, scales, found)
    except Exception as error:  # whatever a compiler or a driver raises
        logging.warning("MXFP4 weights are dequantised without a kernel: %s", error)
        return False
    integer = torch.int16 if dtype.itemsize == 2 else torch.int32
    plain = (part.nan_to_num(nan=7.0, posinf=8.0, neginf=9.0) for part in (wanted, found))
    return torch.equal(*(part.view(integer) for part in plain))


@cache
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the two values of each byte, (256, 2)."""
    values = torch.tensor(_FP4, dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack([values[byte & 15], values[byte >> 4]], dim=1)


def _parts(count: int, elements: int) -> Iterator[slice]:
    """Split `count` items of so many elements each into parts."""
    step = max(1, PART_ELEMENTS // elements)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
