"""Trained miniatures: the checkpoints that `training/` made, packed to two thirds of their bytes.

    python -m moe_outliers.demo.trained FOLDER
    python -m moe_outliers.demo.trained CHECKPOINT FILE.xz

The first unpacks them below FOLDER, each as a checkpoint in the hub's layout; the second packs one.

A packed checkpoint is one xz file: a JSON line that names the tensors and their shapes, then the
low bytes of all bfloat16 values, then their high bytes. High bytes, sign and exponent, are much
alike: together they shrink to less than half of their size, between low bytes hardly.
"""

import json
import lzma
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from moe_outliers.storage import files

PACKED = Path(__file__).parents[3] / "training/models"
"""Where a clone of the repository has them; a wheel has none."""

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0}]


def pack(checkpoint: Path, target: Path) -> None:
    """Pack the weights of a checkpoint.

    Args:
        checkpoint: a folder with one model.safetensors, all of it bfloat16.
        target: the file to write, `….xz`.

    Raises:
        ValueError: if a weight has another type.
    """
    tensors = load_file(checkpoint / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bfloat16:
            raise ValueError(f"{checkpoint}: {name} is {tensor.dtype}: it must be bfloat16")
    head = json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()})
    values = torch.cat([tensor.flatten() for tensor in tensors.values()])
    pairs = values.view(torch.uint8).numpy().reshape(-1, 2)
    planes = pairs.T.tobytes()
    packed = lzma.compress(head.encode() + b"\n" + planes, filters=_FILTERS)
    files.write_bytes(target, packed)


def unpack(packed: Path, checkpoint: Path) -> None:
    """Make a checkpoint of a packed one: config.json, tokenizer.json and model.safetensors.

    Args:
        packed: `….xz`; config.json and tokenizer.json lie beside it.
        checkpoint: the folder to make.

    Raises:
        ValueError: if the file is damaged: cut short, or without as many values as it names.
    """
    try:
        head, planes = lzma.decompress(packed.read_bytes()).split(b"\n", 1)
    except lzma.LZMAError as error:
        raise ValueError(f"{packed}: {error}: get this file again") from None
    shapes: dict[str, list[int]] = json.loads(head)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    if len(planes) != 2 * sum(sizes):
        raise ValueError(f"{packed}: it names {sum(sizes)} values and holds {len(planes) // 2}")
    pairs = np.frombuffer(planes, np.uint8).reshape(2, -1).T.copy()
    parts = torch.split(torch.from_numpy(pairs).view(torch.bfloat16).flatten(), sizes)
    tensors = {
        name: part.view(shape).clone()
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(packed.parent / name, checkpoint / name)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


def main(folder: Path) -> None:
    """Unpack every trained miniature; what is there already is left alone."""
    packed = sorted(PACKED.glob("*/*.xz"))
    if not packed:
        raise SystemExit(f"{PACKED}: no trained miniatures: a clone of the repository has them")
    for path in packed:
        checkpoint = folder / f"{path.parent.name}-{path.stem}"
        if not (checkpoint / "model.safetensors").exists():
            unpack(path, checkpoint)
        print(checkpoint)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        pack(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
