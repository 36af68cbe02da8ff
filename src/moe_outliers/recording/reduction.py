"""From one sequence's activations to its statistics: pure, deterministic functions of tensors.

Every function takes the activations of one sequence, so that a sequence's numbers never depend on
which others were computed with it. Comparisons are made in float32 with no further rounding, sums
of powers in float64. The names of the results are the variables of the statistics file.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from moe_outliers.recording.anatomy import SCORES

OUTLIER = 6.0
"""The magnitude of Dettmers et al. 2022 that variables with a fixed threshold use."""

MASSIVE = (100.0, 1000.0)
"""A massive activation is above the first, and the second times its token's median (Sun 2024)."""

TOP = 8
"""How many of the residual stream's largest features are stored a block."""

HEAD_SLICE = 256
"""Positions whose logits are computed at a time: bounds memory.

It also fixes the shape of the matrix product, on which the last bits of its results depend.
"""


def by_row(tensor: Tensor, rows: int) -> Tensor:
    """Return (row, position, …) of activations; models may run the positions of all rows together.

    Args:
        tensor: (row, position, …), or (row times position, feature).
        rows: how many.
    """
    apart = tensor.dim() > 2 and tensor.shape[0] == rows
    return tensor if apart else tensor.reshape(rows, -1, *tensor.shape[1:])


def normalised(h: Tensor, *, eps: float, layer_norm: bool) -> Tensor:
    """Recompute a norm's own value, before gain and offset.

    Args:
        h: (position, feature), the norm's input, any dtype.
        eps: the norm's epsilon.
        layer_norm: LayerNorm with biased variance instead of RMSNorm.

    Returns:
        (position, feature), float32; for RMSNorm its absolute values are at most sqrt(width).
    """
    h = h.float()
    if layer_norm:
        h = h - h.mean(-1, keepdim=True)
    return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)


def site(x: Tensor, z: Tensor, delimiter: Tensor, alphas: Sequence[float]) -> dict[str, Tensor]:
    """Reduce the output of one norm.

    Args:
        x: (position, feature), the norm's output as the model computes it.
        z: (position, feature), float32, the norm's own value before gain and offset.
        delimiter: (position,), bool, the delimiter positions; position 0 is none of them.
        alphas: thresholds, ascending.

    Returns:
        The variables of a site by name; docs/statistics-file.md defines each.
    """
    x = x.float()
    magnitude, z = x.abs(), z.abs()
    peak = magnitude.max(dim=1)
    other = ~delimiter
    other[0] = False
    wide = x.double()
    return {
        "x_count": torch.stack([(magnitude >= alpha).sum(0) for alpha in alphas]),
        "z_count": torch.stack([(z >= alpha).sum(0) for alpha in alphas]),
        "x_min": 0.0 - torch.stack([_peak_over(-x, mask) for mask in (delimiter, other)]),
        "x_max": torch.stack([_peak_over(x, mask) for mask in (delimiter, other)]),
        "x_first": x[0],
        "z_max": z.amax(0),
        "x_positive": (x >= OUTLIER).sum(0),
        "x_delimiter": ((magnitude >= OUTLIER) & delimiter[:, None]).sum(0),
        "power_sum": torch.stack([wide.pow(p).sum() for p in (1, 2, 3, 4)]),
        "token_kurtosis": _kurtosis(wide).mean(),
        "int8_error": int8_errors(x),
        "position_max": peak.values,
        "position_feature": peak.indices,
    }


def int8_errors(x: Tensor) -> Tensor:
    """Relative squared error of x rounded to 8 bits, by four schemes.

    Args:
        x: (position, feature), float32.

    Returns:
        (scheme,), float64: tensor, token (absmax / 127), zeropoint (per token, 255 steps from
        minimum to maximum), mixed (features with any abs(x) >= 6 exact, the rest as token).
        Rounding is half to even; a row of zeros has error 0.

    Source: Dettmers et al. 2022, section 2 and 3.
    """
    magnitude = x.abs()
    regular = ~(magnitude >= OUTLIER).any(0)
    low = x.amin(1, keepdim=True)
    span = _positive(x.amax(1, keepdim=True) - low)
    total = x.double().square().sum()
    rounded = (
        _round_to(x, magnitude.max() / 127),
        _round_to(x, magnitude.amax(1, keepdim=True) / 127),
        torch.round((x - low) * 255 / span) * span / 255 + low,
        torch.where(regular, _round_to(x, (magnitude * regular).amax(1, keepdim=True) / 127), x),
    )
    errors = torch.stack([(x - r).double().square().sum() for r in rounded])
    return errors / torch.where(total > 0, total, torch.ones_like(total))


def residual(h: Tensor) -> dict[str, Tensor]:
    """Reduce the residual stream behind one block.

    Args:
        h: (position, feature), what the decoder layer returns.

    Returns:
        The residual_* variables by name.

    Source: Sun et al. 2024 (arXiv:2402.17762), section 2: massive activations.
    """
    h = h.float()
    magnitude = h.abs()
    median = magnitude.median(dim=1).values  # torch's median is the lower one
    above, times = MASSIVE
    massive = (magnitude > above) & (magnitude > times * median[:, None])
    peak = magnitude.max(dim=0)
    top = torch.sort(peak.values, descending=True, stable=True).indices[:TOP]
    position = peak.indices[top]
    return {
        "residual_max": magnitude.max(),
        "residual_median": median.median(),
        "residual_massive": massive.any(1).sum(),
        "residual_top": h[position, top],
        "residual_top_feature": top,
        "residual_top_position": position,
    }


def router(
    logits: Tensor, weights: Tensor, picked: Tensor, steps: Sequence[str | Tensor]
) -> dict[str, Tensor]:
    """Reduce one router.

    Args:
        logits: (position, expert), the router's logits over all experts.
        weights: (position, k), routing weights as the router returns them.
        picked: (position, k), the picked experts, in the same order.
        steps: what the logits go through before the largest are picked: names of
            `anatomy.SCORES`, and (expert,), what is added.

    Returns:
        route (position, k), router_entropy and router_margin (nats; units of the sorted scores).
    """
    route, entropy, margin = routing(logits, weights, picked, steps)
    return {
        "route": route,
        "router_entropy": entropy.mean(),
        "router_margin": margin.mean(),
    }


def routing(
    logits: Tensor, weights: Tensor, picked: Tensor, steps: Sequence[str | Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return route, entropy and margin of each position: as `router`, before the means."""
    logits, k = logits.float(), picked.shape[1]
    by_expert = torch.argsort(picked, dim=1, stable=True)
    falling = torch.sort(
        weights.float().gather(1, by_expert), dim=1, descending=True, stable=True
    ).indices
    probability, sorted_by = _scores(logits, steps)
    entropy = torch.special.entr(probability).sum(1)
    best = sorted_by.topk(min(k + 1, sorted_by.shape[1]), dim=1).values
    route = picked.gather(1, by_expert).gather(1, falling)
    return route, entropy, best[:, k - 1] - best[:, -1]


def _scores(logits: Tensor, steps: Sequence[str | Tensor]) -> tuple[Tensor, Tensor]:
    """Return the routing distribution, and what is sorted, each (position, expert).

    The distribution is that of the scores before anything is added; of the logits by softmax, where
    they are sorted as they are, or by scores that may be negative.
    """
    scores, distribution = logits, logits.softmax(1)
    for step in steps:
        if isinstance(step, Tensor):
            scores = scores + step
            continue
        scores = SCORES[step](scores)
        if step == "softmax":
            distribution = scores
        elif step != "tanh":
            distribution = scores / scores.sum(1, keepdim=True)
    return distribution, scores


def experts(raw: Tensor, weighted: Tensor, picked: Tensor, count: int) -> dict[str, Tensor]:
    """Find the largest output of each expert, and where it is.

    Args:
        raw: (position, k, feature), each picked expert's output before the routing weight.
        weighted: (position, k, feature), the same times the routing weight.
        picked: (position, k), which expert it is.
        count: number of experts.

    Returns:
        expert_max (signed), expert_max_feature, expert_max_position (-1 for an unpicked expert;
        ties: lowest position, then lowest feature) and expert_raw_max, each (expert,).
    """
    positions, k, _ = weighted.shape
    peak = weighted.abs().max(dim=2)
    flat, expert = peak.values.float().flatten(), picked.flatten()
    place = torch.arange(positions, device=raw.device).repeat_interleave(k)
    largest = flat.new_full((count,), -1.0).scatter_reduce(0, expert, flat, "amax")
    there = torch.where(flat == largest[expert], place, positions)
    first = place.new_full((count,), positions).scatter_reduce(0, expert, there, "amin")
    unpicked = first == positions
    row = torch.where(unpicked, 0, first)
    slot = (picked[row] == torch.arange(count, device=raw.device)[:, None]).int().argmax(1)
    feature = peak.indices[row, slot]
    return {
        "expert_max": torch.where(unpicked, 0.0, weighted[row, slot, feature].float()),
        "expert_max_feature": torch.where(unpicked, -1, feature),
        "expert_max_position": torch.where(unpicked, -1, row),
        "expert_raw_max": flat.new_zeros(count).scatter_reduce(
            0, expert, raw.abs().amax(2).float().flatten(), "amax"
        ),
    }


def token_nll(hidden: Tensor, head: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Negative log-likelihood of each next token.

    Args:
        hidden: (position, feature), the output of the final norm.
        head: gives the logits of some positions, in its own dtype.
        ids: (position,), the token ids.

    Returns:
        (position - 1,), float32, nats. Logits are made for 256 positions at a time.
    """
    targets = ids[1:]
    losses = []
    for start in range(0, len(targets), HEAD_SLICE):
        stop = min(start + HEAD_SLICE, len(targets))
        logits = head(hidden[start:stop]).float()
        losses.append(nn.functional.cross_entropy(logits, targets[start:stop], reduction="none"))
    return torch.cat(losses)


def _peak_over(x: Tensor, mask: Tensor) -> Tensor:
    """Largest value of each feature over some positions; 0 where there are none."""
    peak = torch.where(mask[:, None], x, float("-inf")).amax(0)
    return torch.where(mask.any(), peak, 0.0)


def _kurtosis(x: Tensor) -> Tensor:
    """Kurtosis over features of each position: biased, central, not excess; 0 if constant."""
    square = (x - x.mean(1, keepdim=True)).square()
    variance = square.mean(1)
    return square.square().mean(1) / _positive(variance.square())


def _round_to(x: Tensor, scale: Tensor) -> Tensor:
    scale = _positive(scale)
    return torch.round(x / scale) * scale


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))
