"""GPT-OSS's attention on the flash kernel against a float32 reference, and eager attention.

It may take the place of the eager one if, for both kinds of layers at 2,048 tokens, its error is no
larger. The inputs are random, at the true shapes, with sinks from far below to far above.
"""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from transformers.models.gpt_oss import modeling_gpt_oss

from moe_outliers.engine.attention import sink_flash

HEADS, KEY_HEADS, HEAD = 64, 8, 64
SLACK = 1.0
"""Its error over that of the eager attention, at most."""


def compare(device: str, tokens: int, window: int, scale: float = 1.0) -> list[dict[str, Any]]:
    """Compare both kinds of layers.

    Returns:
        One row a kind: errors relative to the float32 reference, milliseconds, and the verdict.
    """
    rows = []
    random = torch.Generator(device).manual_seed(0)
    for kind, limit in (("full", None), ("sliding", window)):
        draw: Any = {"generator": random, "device": device}
        query = torch.randn((1, HEADS, tokens, HEAD), **draw) * scale
        key, value = (torch.randn((1, KEY_HEADS, tokens, HEAD), **draw) for _ in range(2))
        parts = [part.bfloat16() for part in (query, key, value)]
        sinks = torch.linspace(-6, 8, HEADS, device=device).bfloat16()
        wide = [part.float() for part in parts]
        reference = _eager(wide, sinks.float(), _mask(tokens, limit, device).float())
        row = {"layer": kind, "tokens": tokens}
        for name, run in (
            ("eager", partial(_eager, parts, sinks, _mask(tokens, limit, device))),
            ("flash", partial(_flash, parts, sinks, limit)),
        ):
            out = run().float()
            row[f"{name}_error"] = ((out - reference).norm() / reference.norm()).item()
            row[f"{name}_worst"] = (out - reference).abs().max().item()
            row[f"{name}_ms"] = _milliseconds(run, device)
        finite = math.isfinite(row["flash_error"])
        row["passes"] = finite and row["flash_error"] <= SLACK * row["eager_error"]
        rows.append(row)
    return rows


def _eager(parts: Any, sinks: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    groups = HEADS // KEY_HEADS
    module = SimpleNamespace(sinks=sinks, num_key_value_groups=groups, training=False)
    run = modeling_gpt_oss.eager_attention_forward
    out: torch.Tensor = run(module, *parts, mask, scaling=HEAD**-0.5)[0]
    return out


def _flash(parts: Any, sinks: torch.Tensor, window: int | None) -> torch.Tensor:
    return sink_flash(None, *parts, None, s_aux=sinks, sliding_window=window, scaling=HEAD**-0.5)[0]


def _mask(tokens: int, window: int | None, device: str) -> torch.Tensor:
    place = torch.arange(tokens, device=device)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (window or tokens))
    mask = torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min)[None, None]
    return mask.bfloat16()


def _milliseconds(run: Any, device: str) -> float:
    if device != "cuda":
        return float("nan")
    times = []
    for _ in range(20):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]
