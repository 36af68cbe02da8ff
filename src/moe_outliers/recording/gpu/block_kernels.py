"""Triton kernels that reduce the residual stream, the experts, and sums over positions.

`site_kernels` says what holds for all of them.
"""

import triton
import triton.language as tl

from moe_outliers.recording.gpu.site_kernels import row_of


@triton.jit
def add_positions(sums, out, columns, positions, LONG: tl.constexpr):
    """Add the sums of the positions of each sequence: (sequence, position, column), float64."""
    column, sequence = tl.program_id(0), tl.program_id(1)
    total = tl.zeros([LONG], tl.float64)
    for start in range(0, positions, LONG):
        rows = start + tl.arange(0, LONG)
        total += tl.load(
            sums + (sequence * positions + rows) * columns + column,
            mask=rows < positions,
            other=0.0,
        )
    tl.store(out + sequence * columns + column, tl.sum(total, 0))


@triton.jit
def residual_rows(
    hs,
    medians,
    peaks,
    positions,
    width,
    LOWEST_BIT: tl.constexpr,
    WIDE: tl.constexpr,
    H: tl.constexpr,
):
    """Find each position's largest value and its lower median.

    The bits of float32 that are not negative ascend with the numbers: the median is built bit by
    bit, from the highest, by counting how many values lie below.
    """
    position, sequence = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, WIDE)
    there = columns < width
    size = tl.abs(row_of(hs, sequence, position, columns, there, width, H))
    tl.store(peaks + sequence * positions + position, tl.max(size, 0))
    bits = tl.where(there, size.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    below, median = (width - 1) // 2, 0
    for step in tl.static_range(31 - LOWEST_BIT):
        trial = median | (1 << (30 - step))
        count = tl.sum((bits < trial).to(tl.int32), 0)
        median = tl.where(count <= below, trial, median)
    tl.store(medians + sequence * positions + position, median.to(tl.float32, bitcast=True))


@triton.jit
def residual_columns(
    hs,
    out,
    positions,
    width,
    TALL: tl.constexpr,
    STEPS: tl.constexpr,
    WIDE: tl.constexpr,
    H: tl.constexpr,
):
    """Find each feature's largest value over some positions, and the first that has it.

    One integer holds both: the bits of the value, and below them the position counted backwards, so
    that the maximum is the first position on ties.
    """
    block, sequence = tl.program_id(1), tl.program_id(2)
    columns = tl.program_id(0) * WIDE + tl.arange(0, WIDE)[None, :]
    start = tl.load(hs + sequence).to(tl.pointer_type(H))
    best = tl.zeros([TALL, WIDE], tl.int64)
    for step in range(STEPS):
        rows = (block * STEPS + step) * TALL + tl.arange(0, TALL)[:, None]
        there = (rows < positions) & (columns < width)
        h = tl.load(start + rows.to(tl.int64) * width + columns, mask=there, other=0.0)
        bits = tl.abs(h.to(tl.float32)).to(tl.int32, bitcast=True).to(tl.int64)
        best = tl.maximum(best, tl.where(there, (bits << 32) | (0x7FFFFFFF - rows), 0))
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    place = (sequence * tl.num_programs(1) + block).to(tl.int64) * width + column
    tl.store(out + place, tl.max(best, 0), mask=column < width)


@triton.jit
def expert_rows(
    raw,
    order,
    weights,
    peaks,
    features,
    raw_peaks,
    width,
    WIDE: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Find the largest weighted value that each picked expert writes at a position, and where."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDE)
    there = columns < width
    value = tl.load(raw + row * width + columns, mask=there, other=0.0).to(tl.float32)
    row = tl.load(order + row)
    tl.store(raw_peaks + row, tl.max(tl.abs(value), 0))
    weighted = (value * tl.load(weights + row).to(tl.float32)).to(PRODUCT).to(tl.float32)
    feature = tl.argmax(tl.where(there, tl.abs(weighted), -1.0), 0)
    tl.store(features + row, feature)
    tl.store(peaks + row, tl.sum(tl.where(columns == feature, weighted, 0.0), 0))


@triton.jit
def expert_places(
    peaks,
    features,
    raw_peaks,
    picked,
    values,
    at_feature,
    at_position,
    raw_largest,
    picks,
    rows,
    LONG: tl.constexpr,
):
    """Find where each expert wrote its largest value: the first position on ties."""
    expert, sequence = tl.program_id(0), tl.program_id(1)
    first, out = sequence * rows, sequence * tl.num_programs(0) + expert
    peaks, features, raw_peaks = peaks + first, features + first, raw_peaks + first
    picked += first
    best = tl.full([LONG], -1, tl.int64)
    raw_best = tl.zeros([LONG], tl.float32)
    for start in range(0, rows, LONG):
        row = start + tl.arange(0, LONG)
        mine = tl.load(picked + row, mask=row < rows, other=-1) == expert
        bits = tl.abs(tl.load(peaks + row, mask=mine, other=0.0)).to(tl.int32, bitcast=True)
        key = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - row)
        best = tl.maximum(best, tl.where(mine, key, -1))
        raw_best = tl.maximum(raw_best, tl.load(raw_peaks + row, mask=mine, other=0.0))
    key = tl.max(best, 0)
    used = key >= 0
    row = tl.where(used, 0x7FFFFFFF - (key & 0x7FFFFFFF), 0)
    tl.store(values + out, tl.where(used, tl.load(peaks + row), 0.0))
    tl.store(at_feature + out, tl.where(used, tl.load(features + row), -1))
    tl.store(at_position + out, tl.where(used, (row // picks).to(tl.int32), -1))
    tl.store(raw_largest + out, tl.max(raw_best, 0))
