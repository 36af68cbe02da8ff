"""GPT-OSS's attention on torch's flash kernel: learned sinks, and a sliding window.

A sink is an additional column of the softmax that has no value. Attention with it is attention
without it, times 1 / (1 + exp(sink - lse)), lse being the logarithm of the softmax's denominator. A
flash kernel returns lse too, so that the matrix of attention weights is never made.
"""

from typing import Any

import torch
import transformers
from torch import Tensor

SINK_FLASH = "lse_sinks"
"""Its name in transformers, which takes a name with `flash` in it for a package to install."""


def implementation(model_type: str, device: str) -> str | None:
    """Name the attention that a family is run with on a device; None: transformers' choice.

    For GPT-OSS that choice is the eager attention. docs/performance.md has the errors of both,
    against a float32 reference.
    """
    if model_type != "gpt_oss" or device != "cuda":
        return None
    transformers.AttentionInterface.register(SINK_FLASH, sink_flash)
    return SINK_FLASH


def sink_flash(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    s_aux: Tensor,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend causally, with sinks.

    Args:
        module: not used.
        query: (row, head, position, feature).
        key: (row, key head, position, feature); as many heads share one as there are more.
        value: as key.
        attention_mask: must be None: the texts have no padding.
        scaling: of the products of queries and keys.
        s_aux: (head,), the sinks.
        sliding_window: positions that a position sees, itself included; None: all before it.

    Returns:
        (row, position, head, feature), and no weights.

    Raises:
        ValueError: if there is a mask.

    Source: Xiao et al. 2023 (arXiv:2309.17453), section 3; Dao 2023 (arXiv:2307.08691), 3.1.
    """
    if attention_mask is not None:
        raise ValueError(f"{SINK_FLASH}: attends causally, and takes no mask")
    groups, positions = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    window = sliding_window if sliding_window and sliding_window < positions else None
    flash = _on_cuda if query.is_cuda else _on_cpu
    out, lse = flash(query, key, value, scaling, window)
    share = torch.sigmoid(lse - s_aux.float()[:, None])  # (row, head, position), float32
    return (out.float() * share.transpose(1, 2)[..., None]).to(query.dtype), None


def _on_cuda(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
) -> tuple[Tensor, Tensor]:
    positions = query.shape[2]
    limits = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    parts = (part.transpose(1, 2) for part in (query, key, value))
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        *parts, None, None, positions, positions, 0.0, True, False, scale=scaling, **limits
    )
    return out, lse[..., :positions].float()


def _on_cpu(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """The same by torch's kernel for the CPU, with the window as a mask."""
    mask = None
    if window is not None:
        place = torch.arange(query.shape[2])
        distance = place[:, None] - place
        mask = torch.where((distance >= 0) & (distance < window), 0.0, float("-inf")).to(query)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, window is None, attn_mask=mask, scale=scaling
    )
    return out.transpose(1, 2), lse.float()
