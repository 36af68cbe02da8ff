"""The shards of a checkpoint in the hub's layout: their names and headers, checked before use."""

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moe_outliers.checkpoint.source import Folder, Source
from moe_outliers.storage import files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ONLY = "model-00001-of-00001.safetensors"
NUMBERED = re.compile(r"model-\d+-of-\d+\.safetensors")
MAX_HEADER_BYTES = 100_000_000

HEADER_READ_BYTES = 1 << 20
"""Bytes of each shard that are read at first: longer than most headers."""

HEADER_READERS = 16

MAX_AXES = 16
"""More axes than any tensor has; the product of millions of lengths would take for ever."""

SHARD = re.compile(r"[\w.-]+\.safetensors")
"""The name of a shard: no path, nothing that a terminal would obey."""

DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "U16": ("uint16", 2),
    "I16": ("int16", 2), "U32": ("uint32", 4), "I32": ("int32", 4), "U64": ("uint64", 8),
    "I64": ("int64", 8), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4),
    "F64": ("float64", 8), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
}  # fmt: skip
"""Types as a header names them: what torch calls each, and the bytes of a value."""


@dataclass(frozen=True)
class Tensor:
    """Where the bytes of a tensor lie.

    Attributes:
        shard: file name of the shard.
        start: first byte in the file; `stop` is one past the last.
        dtype: safetensors name of the type.
    """

    shard: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


def shards(folder: Path, names: Collection[str] | None = None) -> list[str]:
    """Name the safetensors files of a checkpoint, sorted.

    Args:
        folder: holds the checkpoint's JSON files.
        names: all files of the checkpoint, where they are not in the folder.

    Raises:
        ValueError: if there are none (pickled weights are never opened), or the index names a file
            that is not there.
    """
    names = {p.name for p in folder.iterdir() if p.is_file()} if names is None else names
    if SINGLE in names:  # transformers, too, then leaves an index alone
        return [SINGLE]
    if INDEX in names:
        index = files.read_json(folder / INDEX)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise ValueError(f"{folder / INDEX}: no weight_map")
        named = sorted({str(name) for name in index["weight_map"].values()})
        for name in named:
            if not SHARD.fullmatch(name):
                raise ValueError(
                    f"{folder / INDEX}: {name!r} is not the name of a safetensors file"
                )
            if name not in names:
                raise ValueError(f"{folder}: the shard {name} of {INDEX} is missing")
        return named
    if ONLY in names and not any(n != ONLY and NUMBERED.fullmatch(n) for n in names):
        return [ONLY]
    raise ValueError(f"{folder}: {_no_shards(names)}")


def _no_shards(names: Collection[str]) -> str:
    """Say why a folder holds no checkpoint that can be read, and what to do."""
    own = sorted(name for name in names if name.startswith("consolidated."))
    if any(Path(name).suffix == ".safetensors" for name in own):
        return (
            f"{own[0]} is in Mistral's own layout, whose tensors have other names: take the "
            f"repository, or the revision, that holds {SINGLE} or model-00001-of-….safetensors"
        )
    loose = sorted(name for name in names if Path(name).suffix == ".safetensors")
    if loose:
        return (
            f"it holds {', '.join(loose[:3])}, but neither {SINGLE} nor {INDEX}, which says what "
            "belongs to the checkpoint: fetch the index too"
        )
    pickled = sorted(name for name in names if Path(name).suffix in {".bin", ".pt", ".pth"})
    held = (
        f"it holds {', '.join(pickled[:3])}, and pickled weights are never opened"
        if pickled
        else "none there"
    )
    return f"no safetensors files ({held}); convert the checkpoint to safetensors"


def parse_header(header: bytes, size: int, name: str) -> dict[str, Tensor]:
    """Parse a safetensors header and check that its tensors lie side by side in the file.

    Args:
        header: the JSON text, without the eight bytes of its length.
        size: bytes of the whole file.
        name: the shard's file name.

    Raises:
        ValueError: if a tensor lies outside the file or over another, or its size is not that of
            its type and shape.
    """
    raw = files.parse_json(header, name)
    if not isinstance(raw, dict):
        raise ValueError(f"{name}: the header is no JSON object")
    begin, tensors = 8 + len(header), {}
    for key, entry in raw.items():
        if key == "__metadata__":
            continue
        if not key.isprintable():
            raise ValueError(f"{name}: {key!r} is no name of a tensor")
        try:
            (start, stop), dtype, shape = (
                entry["data_offsets"],
                entry["dtype"],
                tuple(entry["shape"]),
            )
            if len(shape) > MAX_AXES:
                raise ValueError(f"{len(shape)} axes")
            need = math.prod(shape) * DTYPES[dtype][1]
            sound = (
                all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop))
                and stop - start == need
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: the header entry of {key} is malformed: {error}") from None
        if not sound or begin + stop > size:
            where = f"bytes {start} to {stop} of {size - begin}"
            raise ValueError(
                f"{name}: {key} ({dtype} {list(shape)}) at {where}: "
                "the shard is truncated or its header wrong"
            )
        tensors[key] = Tensor(name, begin + start, begin + stop, dtype, shape)
    end = begin
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            raise ValueError(f"{name}: {key} overlaps its neighbour, or leaves a gap before it")
        end = tensor.stop
    if end != size:
        raise ValueError(f"{name}: {size - end} bytes behind the last tensor")
    return tensors


def read_index(folder: Path) -> dict[str, Tensor]:
    """Read the headers of all shards of a folder, as `index_of`."""
    with closing(Folder(folder, shards(folder))) as source:
        return index_of(source)


def index_of(source: Source) -> dict[str, Tensor]:
    """Read the headers of all shards, and nothing else of them.

    Returns:
        Every tensor of the checkpoint by name.

    Raises:
        ValueError: as `parse_header` does; if a tensor stands in two shards, or in another than the
            index says.
    """
    index: dict[str, Tensor] = {}
    with ThreadPoolExecutor(HEADER_READERS) as pool:
        for name, header in zip(
            source.names, pool.map(partial(_read_header, source), source.names), strict=True
        ):
            tensors = parse_header(header, source.size(name), name)
            if twice := tensors.keys() & index.keys():
                raise ValueError(f"{source.folder}: {sorted(twice)[0]} stands in two shards")
            index |= tensors
    if source.names != [SINGLE] and (source.folder / INDEX).is_file():
        promised = json.loads((source.folder / INDEX).read_text())["weight_map"]
        # What the index lists and no shard holds, or the other way about, may be a tensor that the
        # model's class ignores: the headers say what is there.
        for key in sorted(promised.keys() & index.keys()):
            if promised[key] != index[key].shard:
                raise ValueError(
                    f"{source.folder}: {INDEX} says that {key} is in {promised[key]}, "
                    f"it is in {index[key].shard}"
                )
    return index


def absent(folder: Path, index: Mapping[str, Tensor]) -> str:
    """Name a tensor that the index file lists and no shard holds, as the end of a sentence."""
    if not (folder / INDEX).is_file():
        return ""
    if (folder / SINGLE).is_file():
        return (
            f"; {SINGLE} is there: as with transformers it is read, and the shards of {INDEX} not"
        )
    promised = json.loads((folder / INDEX).read_text())["weight_map"]
    lacking = sorted(promised.keys() - index.keys())
    return f"; {INDEX} lists {lacking[0]}, which no shard holds" if lacking else ""


def _read_header(source: Source, name: str) -> bytes:
    """Read one header, in most cases with a single read."""
    size = source.size(name)
    start = bytearray(min(size, HEADER_READ_BYTES))
    source.read_into(name, 0, memoryview(start))
    length = int.from_bytes(start[:8], "little") if size >= 8 else size
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"{source.folder / name}: truncated, or no safetensors file")
    if (missing := 8 + length - len(start)) > 0:
        rest = bytearray(missing)
        source.read_into(name, len(start), memoryview(rest))
        start += rest
    return bytes(start[8 : 8 + length])


def digest(folder: Path) -> str:
    """Hash a local checkpoint: its config.json and every shard, by name and content."""
    names = ["config.json", *shards(folder)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(files.sha256, [folder / name for name in names])
        return files.sha256_of([[name, sha256] for name, sha256 in zip(names, hashes, strict=True)])
