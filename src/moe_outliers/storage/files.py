"""Writes files atomically, so that each is whole or absent; reads and writes strict JSON."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_outliers.failpoints import Failpoint, reach

ATTEMPT = f"{os.getpid()}-{secrets.token_hex(4)}"
"""Part of temporary file names: no two processes ever write to one file."""

PART = ".part"
"""Ending of a file that is being written."""

MAX_JSON_BYTES = 16_000_000


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name, and rename it when it is complete.

    The temporary name is in the same folder, hidden, and belongs to this process alone. The file is
    synchronised to disk before it is renamed and its folder after, so that a power cut leaves the
    old file or the new one. On failure the temporary file is removed and the old file stays.

    Args:
        path: the final path; its folder is made where it is missing.

    Yields:
        The temporary path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{ATTEMPT}{PART}")
    try:
        yield part
        _sync(part)
        reach(Failpoint.BEFORE_RENAME)
        part.replace(path)
        _sync(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise


def remove(path: str | Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def below(folder: str | Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield all files and folders below a folder, sorted; links to folders are followed.

    Args:
        folder: the folder; nothing is below one that is missing.
        above: folders that are not entered, by their real paths: a link may lead back.
    """
    real = os.path.realpath(folder)
    if real in above or not Path(folder).is_dir():
        return
    for path in sorted(Path(folder).iterdir()):
        yield path
        yield from below(path, above | {real})


def must_be_new(folder: Path) -> None:
    """Make sure that a folder does not exist yet.

    Raises:
        ValueError: if it does; the message names it.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name a folder that does not")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name, and rename it when it is complete.

    Yields:
        The temporary path of a folder, which the caller makes.
    """
    part = folder.with_name(f".{folder.name}.{ATTEMPT}{PART}")
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, as `json_bytes` makes it."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Make JSON: indented, sorted keys, and ValueError for a NaN or an infinity."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def read_json(path: str | Path) -> Any:
    """Read JSON that a program wrote.

    Raises:
        ValueError: if it is no JSON, larger than 16 MB, names a key twice, holds a NaN or an
            infinity, or is nested too deeply; the message names the file.
    """
    path = Path(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON as `read_json` does; `name` stands in the message of the ValueError."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=_finite,
            parse_float=_float,
        )
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name}: no valid JSON: {error}") from None


def printable(text: str) -> str:
    """Replace control characters but line ends, so that no text can move a terminal's cursor."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def sha256(path: str | Path) -> str:
    """Hash a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """Hash a JSON value by its canonical text, so that the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tree_sha256(
    folder: str | Path,
    leave_out: frozenset[str] = frozenset(),
    sha256: Callable[[Path], str] = sha256,
) -> str:
    """Hash the files below a folder, by their relative names and contents.

    Args:
        folder: the folder; hidden files below it count too.
        leave_out: file names that do not count.
        sha256: hashes a file; a cache of digests may stand in.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in leave_out)
    return sha256_of([[p.relative_to(folder).as_posix(), sha256(p)] for p in files])


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _finite(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value
