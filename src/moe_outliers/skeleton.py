"""Transformers' model without its parameters, and how a module gets and loses them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from moe_outliers import attention, checkpoint
from moe_outliers.placement import DTYPES


def skeleton(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Make the model with its parameters on the meta device, its other tensors on the real one.

    Args:
        folder: holds config.json.
        dtype: to compute with.
        device: where it will run.
    """
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are dequantised before they are seen
    with accelerate.init_empty_weights(include_buffers=False), no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=attention.implementation(config.model_type, device.type),
            trust_remote_code=False,
        )
    for name, buffer in list(model.named_buffers()):
        put(model, name, buffer.to(device))
    return model.eval()


def dtype_of(
    asked: str, config: Mapping[str, Any], index: Mapping[str, checkpoint.Tensor]
) -> torch.dtype:
    """Return the data type to compute with, as `from_pretrained` finds it.

    Args:
        asked: auto, bfloat16 or float32.
        config: config.json.
        index: every tensor of the checkpoint by name.

    Raises:
        ValueError: if config.json names no floating type.
    """
    if asked == "auto":
        asked = config.get("dtype") or config.get("torch_dtype") or ""
    if not asked:
        stored = (DTYPES[tensor.dtype] for tensor in index.values())
        plain = (d for d in stored if d.is_floating_point and d.itemsize > 1)
        return next(plain, torch.bfloat16)
    found = getattr(torch, asked, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"config.json: dtype {asked!r} is no floating type of torch")
    return found


def put(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Put a tensor in the place of a parameter or buffer; return what was there."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    before: Any
    if leaf in module._buffers:
        before, module._buffers[leaf] = module._buffers[leaf], tensor
    else:
        before = module._parameters[leaf]
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    return before  # type: ignore[no-any-return]


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module do something else for a while."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
