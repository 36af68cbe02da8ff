"""Runs a model that fits on the device: stock transformers, one micro-batch after the other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from moe_outliers.checkpoint.config import Quantisation, quantisation, read_config
from moe_outliers.checkpoint.headers import INDEX, ONLY, SINGLE, Tensor, absent, read_index, shards
from moe_outliers.engine import attention, ends, weight_map
from moe_outliers.engine.meta_model import auto_class, dtype_of, empty_model
from moe_outliers.progress import Progress
from moe_outliers.recording.hooks import NOBODY
from moe_outliers.recording.oracles import Oracles
from moe_outliers.recording.recorder import Recorder

DEQUANTISED = {
    "mxfp4": lambda: transformers.Mxfp4Config(dequantize=True),
    "fp8": lambda: transformers.FineGrainedFP8Config(dequantize=True),
}
"""How transformers is told to compute with dequantised weights, by the method in config.json."""

ALIGNMENT = 64
"""Bytes: torch allocates tensors of the CPU at multiples."""


def load(folder: Path, *, device: str, dtype: str) -> Any:
    """Load a checkpoint with transformers: safetensors only, no code of the repository.

    Args:
        folder: a checkpoint in the hub's layout.
        device: cpu, or cuda: then accelerate places the model over all visible GPUs.
        dtype: auto, bfloat16 or float32.

    Raises:
        ValueError: if the checkpoint lacks tensors, holds others, or some have another shape:
            transformers would fill those at random.
    """
    config = read_config(folder / "config.json")
    made_by = auto_class(config["model_type"], folder / "config.json")
    index, quantised = read_index(folder), quantisation(config, folder)
    _refuse_misfits(folder, dtype_of(dtype, config, index), index, quantised)
    arguments: dict[str, Any] = {}
    if quantised:
        arguments["quantization_config"] = DEQUANTISED[quantised.method]()
    model, loading = made_by.from_pretrained(
        folder,
        config=_naming_the_weights(folder),
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        attn_implementation=attention.implementation(config["model_type"], device),
        device_map="auto" if device == "cuda" else None,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with all else that does not fit
        **arguments,
    )
    wrong = {kind: sorted(map(str, loading[kind])) for kind in loading if loading[kind]}
    if wrong:
        listed = "; ".join(
            f"{kind.replace('_', ' ')}: {', '.join(keys[:3])}" for kind, keys in wrong.items()
        )
        raise ValueError(f"{folder}: the checkpoint does not fit its config.json: {listed}")
    for name, parameter in model.named_parameters():
        if quantised and parameter.dtype != model.dtype:
            raise ValueError(
                f"{folder}: transformers {transformers.__version__} makes {name} {parameter.dtype} "
                f"of {quantised.method} weights, not {model.dtype}: run streamed, or with dtype "
                "auto"
            )
    _refuse_zeroed(model, index, folder)
    if device == "cpu":
        _align(model)
    return model.eval()


def _naming_the_weights(folder: Path) -> Any:
    """Read config.json for transformers, and name the files that the streamed engine would read."""
    found: Any = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    names = shards(folder)
    found.transformers_weights = INDEX if names[0] not in (SINGLE, ONLY) else names[0]
    return found


def _refuse_misfits(
    folder: Path,
    dtype: torch.dtype,
    index: Mapping[str, Tensor],
    quantised: Quantisation | None,
) -> None:
    """Refuse what the streamed engine refuses, and what transformers would load wrongly.

    Raises:
        ValueError: if the checkpoint does not fit its config.json, or holds FP8 weights whose last
            blocks are smaller: transformers divides a matrix evenly among its scales.
    """
    model = empty_model(folder, dtype, torch.device("cpu"))
    try:
        made = weight_map.parameters(model, index, quantised)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}{absent(folder, index)}") from None
    for weight in (piece.stored for parameter in made for piece in parameter.pieces):
        if weight.block and any(n % m for n, m in zip(weight.shape, weight.block, strict=True)):
            raise ValueError(
                f"{folder}: {weight.name} {list(weight.shape)} has a scale for every "
                f"{weight.block[0]} rows and {weight.block[1]} columns: transformers "
                f"{transformers.__version__} cannot read blocks that do not divide a matrix "
                "evenly: run with --set-resources extract:engine=streamed"
            )


def _refuse_zeroed(model: Any, index: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a model of which transformers lost a row: some of its classes put 0 for padding.

    Raises:
        ValueError: if the checkpoint has other numbers there.
    """
    for path, module in model.named_modules():
        row, name = getattr(module, "padding_idx", None), f"{path}.weight"
        if row is None or name not in index or module.weight[row].any():
            continue
        with safe_open(folder / index[name].shard, framework="pt") as shard:
            stored = shard.get_slice(name)[row : row + 1]
        if stored.any():
            raise ValueError(
                f"{folder}: transformers {transformers.__version__} sets {name} of the padding "
                f"token ({row}) to 0, the checkpoint has other numbers: run streamed"
            )


def _align(model: Any) -> None:
    """Move parameters to addresses that torch itself would have chosen.

    Those of a checkpoint lie wherever its file has them, and on the CPU the last bits of a matrix
    product may depend on that.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def run(
    model: Any,
    recorder: Recorder,
    wanted: list[int],
    *,
    micro_batch: int,
    progress: Progress,
) -> Iterator[int]:
    """Run sequences through a loaded model.

    Args:
        model: as `load` returns it.
        recorder: attached to the model; its `ids` are run.
        wanted: rows of `recorder.ids` to run.
        micro_batch: sequences in one forward pass. Rows are grouped by their place in `ids`, not in
            `wanted`, so that a sequence is computed with the same others whichever are missing.
        progress: takes a line from time to time.

    Yields:
        Each wanted row, as soon as the recorder holds all of it.

    Raises:
        NotAsObservedError: if the model does something else than was observed of it.
    """
    device = model.get_input_embeddings().weight.device
    groups = sorted({row // micro_batch for row in wanted})
    head, oracles = ends.Head(model, recorder.anatomy), Oracles(model, recorder.anatomy)
    try:
        for number, group in enumerate(groups):
            rows = range(group * micro_batch, min((group + 1) * micro_batch, len(recorder.ids)))
            ids = torch.from_numpy(recorder.ids[list(rows)].astype("int64")).to(device)
            with torch.inference_mode():
                with recorder.passing(rows):
                    stream = ends.through_blocks(model, recorder.anatomy, ids)
                with recorder.passing(NOBODY):
                    recorder.loss(head.hidden(stream, len(rows)), head, rows)
            oracles.finish()
            progress(f"{number + 1} of {len(groups)} forward passes")
            yield from (row for row in rows if row in set(wanted))
    finally:
        oracles.close()
