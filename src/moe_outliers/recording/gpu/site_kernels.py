"""Triton kernels that reduce the output of a norm, and what holds for all kernels here.

`reduction` is their reference. Counts, extremes and places are equal to it; sums in float64 may
differ in the last bits, for they are added in another order. That order is fixed by the shape of
one sequence alone: no sum is made by atomic operations, and none reaches over two sequences. So the
numbers of a sequence do not depend on what else is reduced with it.

The kernels take tables of addresses, one a sequence: tensors need not be copied together.
"""

import triton
import triton.language as tl

COUNT_BITS = tl.constexpr(4)
"""Bits of a counter; a thread counts at most 15 positions before its counters are taken out."""

ROW_SUMS = tl.constexpr(9)
"""Sums of each position: four powers, kurtosis, and the errors of four int8 schemes."""

DELIMITER = tl.constexpr(1)
OTHER = tl.constexpr(2)
"""Types of a position; 0 is the first."""


@triton.jit
def _round_half_even(x):
    """Round float32 of a magnitude below 2^22."""
    shift = 12582912.0  # 1.5 * 2^23: float32 there lie 1 apart, so the sum is rounded to integers
    return (x + shift) - shift


@triton.jit
def _positive(x):
    return tl.where(x > 0, x, 1.0)


@triton.jit
def row_of(table, sequence, position, columns, there, width, kind):
    """Load one position of one sequence, as float32."""
    start = tl.load(table + sequence).to(tl.pointer_type(kind))
    row = start + position.to(tl.int64) * width + columns
    return tl.load(row, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _squared_error(x, rounded):
    error = (x - rounded).to(tl.float64)
    return tl.sum(error * error, 0)


@triton.jit
def _to_eight_bits(x, largest):
    """Round to multiples of a 127th of a magnitude."""
    scale = _positive(tl.div_rn(largest, 127.0))
    return _round_half_even(tl.div_rn(x, scale)) * scale


@triton.jit
def _first_pass(n0, n1, n2, n3, size0, at0, high0, low0, m0, m1, m2, m3, size1, at1, high1, low1):
    """Add four sums; keep the largest with its first place, the highest, the lowest."""
    later = (size1 > size0) | ((size1 == size0) & (at1 < at0))
    size, at = tl.where(later, size1, size0), tl.where(later, at1, at0)
    high, low = tl.maximum(high0, high1), tl.minimum(low0, low1)
    return n0 + m0, n1 + m1, n2 + m2, n3 + m3, size, at, high, low


@triton.jit
def _add_four(n0, n1, n2, n3, m0, m1, m2, m3):
    return n0 + m0, n1 + m1, n2 + m2, n3 + m3


@triton.jit
def site_rows(
    xs, hs, norms, sums, firsts, peaks, features, positions, width, eps,
    CENTRED: tl.constexpr, WIDE: tl.constexpr, X: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Reduce each position of a norm's output over its features; store the norm's mean and scale.

    Eight quantities are reduced in one pass: a reduction costs more than the arithmetic of a row.
    """
    position, sequence = tl.program_id(0), tl.program_id(1)
    place = sequence * positions + position
    columns = tl.arange(0, WIDE)
    there = columns < width
    h = row_of(hs, sequence, position, columns, there, width, H)
    mean = tl.sum(h, 0) / width if CENTRED else 0.0
    h = tl.where(there, h - mean, 0.0)
    tl.store(norms + place * 2, mean)
    tl.store(norms + place * 2 + 1, tl.rsqrt(tl.sum(h * h, 0) / width + eps))
    x = row_of(xs, sequence, position, columns, there, width, X)
    if position == 0:
        tl.store(firsts + sequence * width + columns, x, mask=there)
    wide = x.to(tl.float64)
    square = wide * wide
    size = tl.where(there, tl.abs(x), -1.0)
    high, low = tl.where(there, x, float("-inf")), tl.where(there, x, float("inf"))
    one, two, three, four, peak, at, high, low = tl.reduce(
        (wide, square, square * wide, square * square, size, columns, high, low), 0, _first_pass
    )
    tl.store(peaks + place, peak)
    tl.store(features + place, at)
    centred = tl.where(there, wide - one / width, 0.0)
    centred = centred * centred
    token = (x - _to_eight_bits(x, peak)).to(tl.float64)
    span = _positive(high - low)
    steps = _round_half_even(tl.div_rn((x - low) * 255.0, span))
    zeropoint = (x - (tl.div_rn(steps * span, 255.0) + low)).to(tl.float64)
    zeropoint = tl.where(there, zeropoint, 0.0)
    second, fourth, token, zeropoint = tl.reduce(
        (centred, centred * centred, token * token, zeropoint * zeropoint), 0, _add_four
    )
    variance = second / width
    out = sums + place * ROW_SUMS
    tl.store(out, one)
    tl.store(out + 1, two)
    tl.store(out + 2, three)
    tl.store(out + 3, four)
    tl.store(out + 4, fourth / width / tl.where(variance > 0, variance * variance, 1.0))
    tl.store(out + 6, token)
    tl.store(out + 7, zeropoint)


@triton.jit
def site_int8(xs, sums, largest, outliers, positions, width, WIDE: tl.constexpr, X: tl.constexpr):
    """Add the errors of the two int8 schemes that need to know the whole sequence."""
    position, sequence = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, WIDE)
    there = columns < width
    x = row_of(xs, sequence, position, columns, there, width, X)
    out = sums + (sequence * positions + position) * ROW_SUMS
    tl.store(out + 5, _squared_error(x, _to_eight_bits(x, tl.load(largest + sequence))))
    outlier = tl.load(outliers + sequence * width + columns, mask=there, other=1)
    regular = tl.where(outlier != 0, 0.0, x)
    largest_regular = tl.max(tl.abs(regular), 0)
    tl.store(out + 8, _squared_error(regular, _to_eight_bits(regular, largest_regular)))


@triton.jit
def _one_each(one, ALPHAS: tl.constexpr):
    """Return a word with 1 in the counter of every threshold."""
    ones = tl.zeros_like(one)
    for k in tl.static_range(ALPHAS):
        ones += one << (COUNT_BITS * k)
    return ones


@triton.jit
def _counters(size, alphas, ones, ALPHAS: tl.constexpr):
    """Return a word with 1 in the counter of each threshold that is reached.

    Thresholds ascend, so that those reached are the lowest counters of the word: a mask is enough.
    """
    reached = tl.zeros_like(ones)
    for k in tl.static_range(ALPHAS):
        reached += (size >= tl.load(alphas + k)).to(tl.int64)
    one = tl.full(ones.shape, 1, tl.int64)
    return ones & ((one << (reached * COUNT_BITS)) - 1)


@triton.jit
def _store_counters(out, words, width, inside, FIELDS: tl.constexpr):
    for k in tl.static_range(FIELDS):
        count = tl.sum(((words >> (COUNT_BITS * k)) & 15).to(tl.int32), 0)
        tl.store(out + k * width, count.to(tl.int16), mask=inside)


@triton.jit
def _store_largest(out, one, other, inside, width):
    tl.store(out, tl.max(one, 0), mask=inside)
    tl.store(out + width, tl.max(other, 0), mask=inside)


@triton.jit
def _over(kind, wanted, x, largest):
    """Take the positions of one kind into a maximum."""
    return tl.maximum(largest, tl.where(kind == wanted, x, float("-inf")))


@triton.jit
def _outliers(x, kind, outlier, ALPHAS: tl.constexpr):
    """Return a word with two counters behind those of the thresholds: positive, at delimiters."""
    at_delimiter = (tl.abs(x) >= outlier) & (kind == DELIMITER)
    word = (x >= outlier).to(tl.int64) << (COUNT_BITS * ALPHAS)
    return word + (at_delimiter.to(tl.int64) << (COUNT_BITS * (ALPHAS + 1)))


@triton.jit
def _normalised(h, norm, there, valid):
    """Return abs(z) of a tile, from mean and scale of its positions."""
    z = h.to(tl.float32) - tl.load(norm, mask=valid, other=0.0)
    return tl.where(there, tl.abs(z * tl.load(norm + 1, mask=valid, other=0.0)), 0.0)


@triton.jit
def site_columns(
    xs, hs, norms, kinds, hits, alphas, counts, extremes, positions, width, outlier,
    ALPHAS: tl.constexpr, TALL: tl.constexpr, STEPS: tl.constexpr, WIDE: tl.constexpr,
    X: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """Reduce each feature of a norm's output over some positions, and mark the unions' hits."""
    block, sequence = tl.program_id(1), tl.program_id(2)
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    x_start = tl.load(xs + sequence).to(tl.pointer_type(X))
    h_start = tl.load(hs + sequence).to(tl.pointer_type(H))
    hit_start = tl.load(hits + sequence).to(tl.pointer_type(tl.int8))
    ones = _one_each(tl.full([TALL, WIDE], 1, tl.int64), ALPHAS)
    x_words, z_words = tl.zeros_like(ones), tl.zeros_like(ones)
    z_high = tl.zeros([TALL, WIDE], tl.float32)
    high_d = z_high - float("inf")
    high_o, low_d, low_o = high_d, high_d, high_d
    for step in range(STEPS):
        rows = (block * STEPS + step) * TALL + tl.arange(0, TALL)[:, None]
        valid = rows < positions
        there = valid & (column[None, :] < width)
        places = rows.to(tl.int64) * width + column[None, :]
        x = tl.load(x_start + places, mask=there, other=0.0)
        hit = there & (tl.abs(x.to(tl.bfloat16).to(tl.float32)) >= outlier)
        tl.store(hit_start + places, tl.full([TALL, WIDE], 1, tl.int8), mask=hit)
        x = x.to(tl.float32)
        h = tl.load(h_start + places, mask=there, other=0.0)
        z = _normalised(h, norms + (sequence * positions + rows) * 2, there, valid)
        kind = tl.load(kinds + sequence * positions + rows, mask=valid, other=0)
        x_words += _counters(tl.abs(x), alphas, ones, ALPHAS) + _outliers(x, kind, outlier, ALPHAS)
        z_words += _counters(z, alphas, ones, ALPHAS)
        low_d, low_o = _over(kind, DELIMITER, -x, low_d), _over(kind, OTHER, -x, low_o)
        high_d, high_o = _over(kind, DELIMITER, x, high_d), _over(kind, OTHER, x, high_o)
        z_high = tl.maximum(z_high, z)
    inside, part = column < width, (sequence * tl.num_programs(1) + block).to(tl.int64)
    out = counts + part * (2 * ALPHAS + 2) * width + column
    _store_counters(out, x_words, width, inside, ALPHAS + 2)
    _store_counters(out + (ALPHAS + 2) * width, z_words, width, inside, ALPHAS)
    out = extremes + part * 5 * width + column
    _store_largest(out, low_d, low_o, inside, width)
    _store_largest(out + 2 * width, high_d, high_o, inside, width)
    tl.store(out + 4 * width, tl.max(z_high, 0), mask=inside)
