"""A Triton kernel that dequantises weights: `dequantise` is its reference, equal bit for bit."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _BYTES = 64, 64  # of a tile: bytes of a row hold twice as many values, of four groups


def mxfp4(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Dequantise and transpose the experts of a block, as `dequantise.mxfp4`; all contiguous."""
    experts, rows, groups, half = blocks.shape
    grid = triton.cdiv(rows, _ROWS), triton.cdiv(groups * half, _BYTES), experts
    with torch.cuda.device(out.device):
        mxfp4_tiles[grid](
            blocks, scales, out, rows, groups * half, ROWS=_ROWS, BYTES=_BYTES, HALF=half,
        )  # fmt: skip


@triton.jit
def _value(code, power):
    """Return the number of E2M1 in four bits, sign, exponent (2), mantissa, times twice a power."""
    size = (code & 7).to(tl.float32)
    twice = tl.where(size < 4, size, tl.where(size < 6, size * 2 - 4, size * 4 - 16))
    bits = (twice * power).to(tl.int32, bitcast=True) | ((code & 8) << 28)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def mxfp4_tiles(
    blocks, scales, out, rows, width,
    ROWS: tl.constexpr, BYTES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Dequantise some rows of some groups of one expert, into (expert, column, row)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)[None, :]
    expert = tl.program_id(2).to(tl.int64)
    there = (row < rows) & (byte < width)
    place = (expert * rows + row) * width + byte
    pair = tl.load(blocks + place, mask=there, other=0).to(tl.int32)
    scale = tl.load(scales + place // HALF, mask=there, other=0).to(tl.int32)
    # Half of the scale's power of two, which can be infinite; the two lowest are subnormal.
    power = tl.where(scale > 1, (scale - 1) << 23, (1 << 21) << scale).to(tl.float32, bitcast=True)
    to = out + (expert * width + byte) * 2 * rows + row
    kind = out.dtype.element_ty
    tl.store(to, _value(pair & 15, power).to(kind), mask=there)
    tl.store(to + rows, _value(pair >> 4, power).to(kind), mask=there)
