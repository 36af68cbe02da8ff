"""The way in which such statistics were made before: whole model, saved activations, Python loops.

The model is loaded with its layers spread over the GPUs. Each sequence is run by itself, once for
each chunk of layers; the outputs of both norms of a chunk are brought to the host and saved, a file
each. Then every file is loaded, each value of at least `magnitude` becomes a Python object, and
loops count layers and positions for each feature.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

CHUNKS = {"olmoe-1b-7b": None, "gpt-oss-20b": 8, "qwen3-30b-a3b": 8, "mixtral-8x7b": 8}
"""Layers of a chunk; None: all at once."""


def run(
    model: Any,
    ids: torch.Tensor,
    folder: Path,
    *,
    chunk: int | None,
    magnitude: float,
    trace: Any,
) -> dict[str, float]:
    """Capture and analyse some sequences.

    Args:
        model: on the device.
        ids: (sequence, position).
        folder: for the files.
        chunk: layers of one forward pass.
        magnitude: of an outlier.
        trace: captures some layers of one sequence: `by_hooks` or `by_nnsight`.

    Returns:
        Seconds of capture and of analysis, outliers found, and bytes saved.
    """
    layers = model.config.num_hidden_layers
    found = defaultdict(float)
    for row in ids:
        started = time.perf_counter()
        for first in range(0, layers, chunk or layers):
            numbers = range(first, min(first + (chunk or layers), layers))
            for name, x in trace(model, row[None], numbers).items():
                torch.save(x, folder / f"{name}.pt")
        torch.cuda.synchronize() if model.device.type == "cuda" else None
        found["capture_s"] += time.perf_counter() - started
        found["bytes"] += sum(path.stat().st_size for path in folder.glob("*.pt"))
        started = time.perf_counter()
        found["outliers"] += analyse(folder, magnitude)
        found["analysis_s"] += time.perf_counter() - started
    return dict(found)


def by_hooks(model: Any, ids: torch.Tensor, numbers: range) -> dict[str, torch.Tensor]:
    """Capture by forward hooks."""
    kept, handles = {}, []
    for number in numbers:
        layer = model.model.layers[number]
        for kind in ("input_layernorm", "post_attention_layernorm"):
            name = f"layer_{number}_{kind}"
            hook = _keep(kept, name)
            handles.append(getattr(layer, kind).register_forward_hook(hook))
    with torch.inference_mode():
        model(ids)
    for handle in handles:
        handle.remove()
    return kept


def _keep(kept: dict[str, torch.Tensor], name: str) -> Any:
    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        kept[name] = output.to("cpu", torch.bfloat16)

    return hook


def by_nnsight(model: Any, ids: torch.Tensor, numbers: range) -> dict[str, torch.Tensor]:
    """Capture by nnsight, as the old system did."""
    from nnsight import NNsight

    traced, kept = NNsight(model), {}
    with torch.inference_mode(), traced.trace(ids):
        for number in numbers:
            layer = traced.model.layers[number]
            kept[f"layer_{number}_input_layernorm"] = layer.input_layernorm.output.save()
            kept[f"layer_{number}_post_attention_layernorm"] = (
                layer.post_attention_layernorm.output.save()
            )
    return {name: value.to("cpu", torch.bfloat16) for name, value in kept.items()}


def analyse(folder: Path, magnitude: float) -> int:
    """Find outliers as the old system did; return how many values there were."""
    events = defaultdict(list)
    files = sorted(folder.glob("*.pt"))
    for file in files:
        x = torch.load(file, weights_only=True).float()
        batch, position, feature = torch.where(x.abs() >= magnitude)
        values = x[batch, position, feature]
        for b, p, f, v in zip(
            batch.tolist(), position.tolist(), feature.tolist(), values.tolist(), strict=True
        ):
            event = {"layer": file.stem, "batch": b, "position": p, "feature": f, "value": v}
            events[f].append(event)
    for found in events.values():
        layers = {event["layer"] for event in found}
        positions = {(event["batch"], event["position"]) for event in found}
        largest = max(abs(event["value"]) for event in found)
        _ = len(layers) / len(files), len(positions), largest, found[:5]
    return sum(map(len, events.values()))
