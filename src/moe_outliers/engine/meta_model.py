"""Makes transformers' model with its parameters on the meta device; replaces single ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

from moe_outliers.checkpoint import headers
from moe_outliers.engine import attention
from moe_outliers.engine.weight_map import torch_dtype

COMPUTED = ("bfloat16", "float16", "float32")
"""Types that can be computed with."""

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "IMAGE_TEXT_TO_TEXT": "AutoModelForImageTextToText",
    "MULTIMODAL_LM": "AutoModelForMultimodalLM",
}
"""Tables of transformers, and the class that makes models of the types in each."""


def auto_class(model_type: str, path: Path) -> Any:
    """Return the class of transformers that makes a causal language model of a type.

    Of a model that takes images too, it is the whole of it; text passes its decoder alone.

    Args:
        model_type: as config.json says.
        path: of config.json, for the message.

    Raises:
        ValueError: if transformers has none.
    """
    for table, made_by in AUTO_CLASSES.items():
        if model_type in getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {}):
            return getattr(transformers, made_by)
    raise ValueError(
        f"{path}: transformers {transformers.__version__} has no causal language model of "
        f"model_type {model_type!r}; code of a repository is never run"
    )


def empty_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Make the model with its parameters on the meta device, its buffers on the real one.

    Args:
        folder: holds config.json.
        dtype: to compute with.
        device: where it will run.

    Raises:
        ValueError: if transformers can make no model of config.json.
    """
    try:
        model = _empty(folder, dtype, device)
    except Exception as error:  # transformers checks little of config.json: any may come
        said = f"{type(error).__name__}: {error}"[:300]
        raise ValueError(
            f"{folder / 'config.json'}: transformers {transformers.__version__} can make no model "
            f"of it: {said}"
        ) from error
    for name, buffer in list(model.named_buffers()):
        put(model, name, buffer.to(device))
    return model.eval()


def _empty(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    config = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are dequantised before they are seen
    made_by = auto_class(config.model_type, folder / "config.json")
    with accelerate.init_empty_weights(include_buffers=False), no_init_weights():
        return made_by.from_config(
            config,
            dtype=dtype,
            attn_implementation=attention.implementation(config.model_type, device.type),
            trust_remote_code=False,
        )


def dtype_of(
    asked: str, config: Mapping[str, Any], index: Mapping[str, headers.Tensor]
) -> torch.dtype:
    """Return the data type to compute with, as `from_pretrained` finds it.

    Args:
        asked: auto, bfloat16 or float32.
        config: config.json.
        index: every tensor of the checkpoint by name.

    Raises:
        ValueError: if config.json names another type than COMPUTED.
    """
    if asked == "auto":
        asked = config.get("dtype") or config.get("torch_dtype") or ""
    if not asked:
        stored = map(torch_dtype, index.values())
        plain = (d for d in stored if d.is_floating_point and d.itemsize > 1)
        return next(plain, torch.bfloat16)
    if asked not in COMPUTED:
        raise ValueError(f"config.json: dtype {asked!r} is not one of {', '.join(COMPUTED)}")
    found: torch.dtype = getattr(torch, asked)
    return found


def put(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Replace a parameter or buffer by a tensor; return the old one."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    before: Any
    if leaf in module._buffers:
        before, module._buffers[leaf] = module._buffers[leaf], tensor
    else:
        before = module._parameters[leaf]
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    return before  # type: ignore[no-any-return]
