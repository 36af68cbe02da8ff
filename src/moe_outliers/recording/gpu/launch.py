"""Launches the Triton kernels; same results as `reduction`, with a leading sequence axis.

`site_kernels` says which of them are equal to `reduction` bit for bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_outliers.recording import reducer, reduction
from moe_outliers.recording.gpu import block_kernels, site_kernels

_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
_TALL, _STEPS, _WIDE = 8, 8, 128  # a tile of positions, tiles of a program, features of a program
_LONG = 1024


def kinds(delimiter: Tensor) -> Tensor:
    """Return the type of each position, (sequence, position), int8: first, delimiter or other."""
    kind = torch.where(delimiter, site_kernels.DELIMITER.value, site_kernels.OTHER.value)
    kind[:, 0] = 0
    return kind.to(torch.int8)


def sites(
    xs: Sequence[Tensor],
    hs: Sequence[Tensor],
    kinds: Tensor,
    hits: Sequence[Tensor],
    *,
    alphas: Tensor,
    eps: float,
    layer_norm: bool,
) -> dict[str, Tensor]:
    """Reduce the outputs of one norm.

    Args:
        xs: for each sequence, (position, feature): the norm's output.
        hs: for each, the norm's input.
        kinds: (sequence, position), as `kinds` returns it, of these sequences.
        hits: for each, (position, feature), bool: its outlier positions are added there.
        alphas: thresholds, ascending, float32; at most fourteen.
        eps: the norm's epsilon.
        layer_norm: LayerNorm instead of RMSNorm.
    """
    (positions, width), device = xs[0].shape, xs[0].device
    shape: Any = {"x_table": _table(xs), "shape": (len(xs), positions, width), "device": device}
    shape |= {"x": _TYPES[xs[0].dtype], "h": _TYPES[hs[0].dtype]}
    batch = _Sites(h_table=_table(hs), **shape)
    batch.reduce_rows(eps, layer_norm)
    counts, extreme = batch.reduce_columns(kinds, _table(hits), alphas)
    x_count, positive, at_delimiter, z_count = counts
    largest = torch.maximum(extreme[:, :4].amax(1), batch.firsts.abs())
    added = batch.add_rows((largest >= reduction.OUTLIER).to(torch.int8))
    errors, energy = added[:, 5:9], added[:, 1:2]
    low, high = -extreme[:, :2], extreme[:, 2:4]
    return {
        "x_count": x_count,
        "z_count": z_count,
        "x_min": torch.where(low.isinf(), 0.0, low),
        "x_max": torch.where(high.isinf(), 0.0, high),
        "x_first": batch.firsts,
        "z_max": extreme[:, 4],
        "x_positive": positive[:, 0],
        "x_delimiter": at_delimiter[:, 0],
        "power_sum": added[:, :4],
        "token_kurtosis": added[:, 4] / positions,
        "int8_error": errors / torch.where(energy > 0, energy, 1.0),
        "position_max": batch.peaks,
        "position_feature": batch.features,
    }


class _Sites:
    """The outputs of one norm for several sequences, and what the kernels have made of them.

    Attributes:
        firsts: (sequence, feature), x at position 0.
        peaks: (sequence, position), largest abs(x).
        features: (sequence, position), the first that has it.
    """

    def __init__(
        self,
        *,
        x_table: Tensor,
        h_table: Tensor,
        shape: tuple[int, int, int],
        device: torch.device,
        x: tl.dtype,
        h: tl.dtype,
    ) -> None:
        self._x_table, self._h_table, self._shape, self._x, self._h = x_table, h_table, shape, x, h
        count, positions, width = shape
        floats: Any = {"dtype": torch.float32, "device": device}
        self._norms = torch.empty((count, positions, 2), **floats)
        self._sums = torch.empty((count, positions, 9), dtype=torch.float64, device=device)
        self.firsts = torch.empty((count, width), **floats)
        self.peaks = torch.empty((count, positions), **floats)
        self.features = torch.empty((count, positions), dtype=torch.int32, device=device)
        self._wide: Any = {"WIDE": _power(width), "num_warps": _warps(width)}
        self._wide |= {"enable_fp_fusion": False}  # the reference rounds each product

    def reduce_rows(self, eps: float, layer_norm: bool) -> None:
        """Reduce over features: all sums of a position but two int8 errors, which need all of x."""
        count, positions, width = self._shape
        site_kernels.site_rows[positions, count](
            self._x_table, self._h_table, self._norms, self._sums, self.firsts, self.peaks,
            self.features, positions, width, eps,
            CENTRED=layer_norm, X=self._x, H=self._h, **self._wide,
        )  # fmt: skip

    def reduce_columns(
        self, kinds: Tensor, hit_table: Tensor, alphas: Tensor
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Reduce over positions: counts by kind of count, and extremes (sequence, 5, feature)."""
        count, positions, width = self._shape
        blocks, device = -(-positions // (_TALL * _STEPS)), kinds.device
        parts = (count, blocks, 2 * len(alphas) + 2, width)
        counts = torch.empty(parts, dtype=torch.int16, device=device)
        extremes = torch.empty((count, blocks, 5, width), dtype=torch.float32, device=device)
        site_kernels.site_columns[-(-width // _WIDE), blocks, count](
            self._x_table, self._h_table, self._norms, kinds, hit_table, alphas, counts, extremes,
            positions, width, reduction.OUTLIER, ALPHAS=len(alphas), TALL=_TALL, STEPS=_STEPS,
            WIDE=_WIDE, X=self._x, H=self._h, enable_fp_fusion=False,
        )  # fmt: skip
        total = counts.sum(1, dtype=torch.int32)
        return torch.split(total, [len(alphas), 1, 1, len(alphas)], 1), extremes.amax(1)

    def add_rows(self, outliers: Tensor) -> Tensor:
        """Compute the int8 errors that need all of a sequence; add all sums over positions."""
        count, positions, width = self._shape
        site_kernels.site_int8[positions, count](
            self._x_table, self._sums, self.peaks.amax(1), outliers, positions, width,
            X=self._x, **self._wide,
        )  # fmt: skip
        return _add(self._sums)


def compile_all(h: Tensor, delimiter: Tensor, alphas: Tensor, *, layer_norm: bool) -> None:
    """Compile every kernel for activations of this shape and type, in parallel.

    Args:
        h: (position, feature), any numbers.
        delimiter: (1, position), bool.
        alphas: thresholds, ascending, float32.
        layer_norm: LayerNorm instead of RMSNorm.
    """
    table, kind = _table([h]), _TYPES[h.dtype]
    outliers = torch.zeros_like(h, dtype=torch.bool)
    hits = _table([outliers])  # holds an address alone: `outliers` must outlive the kernels
    batch = _Sites(
        x_table=table, h_table=table, shape=(1, *h.shape), device=h.device, x=kind, h=kind
    )
    picked = torch.zeros((len(h), 1), dtype=torch.int64, device=h.device)
    picks = reducer.Picks(h, picked.flatten(), picked.to(h.dtype), picked)
    works: list[Callable[[], Any]] = [
        lambda: batch.reduce_rows(1e-6, layer_norm),
        lambda: batch.reduce_columns(kinds(delimiter), hits, alphas),
        lambda: batch.add_rows(torch.zeros((1, h.shape[1]), dtype=torch.int8, device=h.device)),
        lambda: residuals([h]),
        lambda: experts(picks, 1, 1),
    ]
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def residuals(hs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Reduce the residual stream behind one block; hs: for each sequence, (position, feature)."""
    (positions, width), count, device = hs[0].shape, len(hs), hs[0].device
    table, kind = _table(hs), {"H": _TYPES[hs[0].dtype]}
    medians = torch.empty((count, positions), dtype=torch.float32, device=device)
    peaks = torch.empty_like(medians)
    block_kernels.residual_rows[positions, count](
        table, medians, peaks, positions, width, num_warps=_warps(width), WIDE=_power(width),
        LOWEST_BIT=16 if hs[0].dtype == torch.bfloat16 else 0, **kind,
    )  # fmt: skip
    blocks = -(-positions // (_TALL * _STEPS))
    packed = torch.empty((count, blocks, width), dtype=torch.int64, device=device)
    block_kernels.residual_columns[-(-width // _WIDE), blocks, count](
        table, packed, positions, width, TALL=_TALL, STEPS=_STEPS, WIDE=_WIDE, **kind
    )
    best = packed.amax(1)
    largest = (best >> 32).int().view(torch.float32)
    order = torch.sort(largest, dim=1, descending=True, stable=True).indices
    top = order[:, : reduction.TOP]
    position = 0x7FFFFFFF - (best.gather(1, top) & 0x7FFFFFFF)
    signed = [h[p, f] for h, p, f in zip(hs, position, top, strict=True)]
    above, times = reduction.MASSIVE
    return {
        "residual_max": peaks.amax(1),
        "residual_median": medians.median(dim=1).values,
        "residual_massive": ((peaks > above) & (peaks > times * medians)).sum(1),
        "residual_top": torch.stack(signed).float(),
        "residual_top_feature": top,
        "residual_top_position": position,
    }


def experts(picks: Any, count: int, sequences: int) -> list[dict[str, Tensor]]:
    """Find each expert's largest output in each sequence, as `Reducer.experts`.

    Args:
        picks: the `reducer.Picks` of all sequences.
        count: number of experts.
        sequences: how many.
    """
    raw, order, weights, picked = picks
    (rows, width), k, device = raw.shape, picked.shape[1], raw.device
    peaks, raw_peaks = (torch.empty(rows, dtype=torch.float32, device=device) for _ in range(2))
    features = torch.empty(rows, dtype=torch.int32, device=device)
    product = torch.promote_types(raw.dtype, weights.dtype)
    block_kernels.expert_rows[rows,](
        raw, order, weights.contiguous(), peaks, features, raw_peaks, width,
        WIDE=_power(width), PRODUCT=_TYPES[product], num_warps=_warps(width),
    )  # fmt: skip
    kinds = {
        "expert_max": torch.float32,
        "expert_max_feature": torch.int32,
        "expert_max_position": torch.int32,
        "expert_raw_max": torch.float32,
    }
    values = {
        name: torch.empty((sequences, count), dtype=kind, device=device)
        for name, kind in kinds.items()
    }
    block_kernels.expert_places[count, sequences](
        peaks, features, raw_peaks, picked.contiguous(), *values.values(), k,
        rows // sequences, LONG=_LONG,
    )  # fmt: skip
    return [{name: value[n] for name, value in values.items()} for n in range(sequences)]


def routers(
    outputs: Sequence[tuple[Tensor, Tensor, Tensor]], steps: Sequence[str | Tensor]
) -> dict[str, Tensor]:
    """Reduce one router; outputs: logits, weights and picks of each sequence; steps as there."""
    logits, weights, picked = (torch.cat(part) for part in zip(*outputs, strict=True))
    route, entropy, margin = reduction.routing(logits, weights, picked, steps)
    count = len(outputs)
    means = _add(torch.stack([entropy, margin], 1).double().view(count, -1, 2))
    means /= len(entropy) // count
    return {
        "route": route.view(count, -1, route.shape[1]),
        "router_entropy": means[:, 0],
        "router_margin": means[:, 1],
    }


def _add(sums: Tensor) -> Tensor:
    """Add (sequence, position, column), float64, over positions, always in the same order."""
    count, positions, columns = sums.shape
    out = torch.empty((count, columns), dtype=torch.float64, device=sums.device)
    block_kernels.add_positions[columns, count](sums, out, columns, positions, LONG=_LONG)
    return out


def _table(tensors: Sequence[Tensor]) -> Tensor:
    """Return the addresses of tensors, on their device."""
    addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
    return addresses.to(tensors[0].device, non_blocking=True)


def _power(width: int) -> int:
    return int(triton.next_power_of_2(width))


def _warps(width: int) -> int:
    return min(max(_power(width) // 512, 1), 16)
