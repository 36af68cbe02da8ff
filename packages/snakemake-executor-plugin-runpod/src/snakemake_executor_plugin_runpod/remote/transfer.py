"""Files to a pod and back: each is proven by its sha256 on both sides, and gets its name last."""

import asyncio
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Set
from contextlib import aclosing, suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from snakemake_executor_plugin_runpod.api.errors import printable
from snakemake_executor_plugin_runpod.digests import Digests, Item
from snakemake_executor_plugin_runpod.failpoints import Failpoint, reach
from snakemake_executor_plugin_runpod.failures import JobError
from snakemake_executor_plugin_runpod.limits import Limits
from snakemake_executor_plugin_runpod.remote.link import Link, LostError, RemoteError

PIECE = 1 << 20
ATTEMPTS = 5
"""How often one transfer begins again before the connection is given up."""

BATCH = 2000
"""Files in one request."""

MANY = 64
"""More files than that are put on the disk all at once: one by one takes longer than they took."""


async def upload(link: Link, job: str, items: list[Item], limits: Limits) -> int:
    """Bring files to a pod; those that are there already, whole, are not sent again.

    Returns:
        The bytes that were sent.

    Raises:
        LostError: if the connection does not hold long enough.
        RemoteError: if the pod cannot take them.
    """
    sent = 0
    for begin in range(0, len(items), BATCH):
        batch = items[begin : begin + BATCH]
        for attempt in range(ATTEMPTS):
            listed = [[i.name, i.kind, i.size, i.digest] for i in batch]
            request = {"job": job, "files": listed}
            lacking = (await link.ask("missing", request, patience=limits.silent))["missing"]
            if not lacking:
                break
            todo = [batch[index] for index in lacking]
            files = [[i.name, i.kind, i.size, i.digest] for i in todo]
            try:
                body = _contents(todo)
                await link.ask("put", {"job": job, "files": files}, body, patience=limits.silent)
                sent += sum(i.size for i in todo)
            except LostError:
                if attempt == ATTEMPTS - 1:
                    raise
        else:
            raise RemoteError(f"{lacking and batch[lacking[0]].name} never arrived whole")
    return sent


def _contents(items: Iterable[Item]) -> Iterator[bytes]:
    for each in items:
        if each.kind == "link":
            continue
        left = each.size
        with each.path.open("rb") as file:
            while left and (piece := file.read(min(PIECE, left))):
                left -= len(piece)
                yield piece
        while left:  # it shrank: the digest will tell
            yield bytes(min(PIECE, left))
            left -= min(PIECE, left)


@dataclass(frozen=True)
class Product:
    """A file, link or folder that a job has made, as the pod lists it.

    Attributes:
        product: the output's path, relative to the working directory.
        below: its name below the output if that is a folder, else empty.
        kind: file, link or folder.
        size: of a file in bytes.
        sha256: of a file.
        mode: permission bits, of a file or folder.
        link: what a link points at.
    """

    product: str
    below: str
    kind: str
    mtime_ns: int
    size: int = 0
    sha256: str = ""
    mode: int = 0o644
    link: str = ""

    @property
    def target(self) -> Path:
        """Where it goes here."""
        return Path(self.product, self.below) if self.below else Path(self.product)

    @property
    def permissions(self) -> tuple[bool, bool]:
        """Whether its owner may execute it, and write to it."""
        return _permissions(self.mode)

    def is_sound(self, allowed: Set[str]) -> bool:
        """Tell whether it may be what it says, and leads nowhere but to its place."""
        here = _inside(self.below) if self.below else self.kind != "link"
        if not (here and self.product in allowed and self.mtime_ns >= 0):
            return False
        if self.kind == "file":
            return self.size >= 0 and re.fullmatch("[0-9a-f]{64}", self.sha256) is not None
        if self.kind == "link":
            return self.link != "" and _inside(
                os.path.normpath(self.target.parent / self.link), Path(self.product)
            )
        return self.kind == "folder"


def _inside(name: str, product: Path = Path()) -> bool:
    """Tell whether a path leads no higher than the working directory, or than a product above it.

    Args:
        name: relative, with slashes.
        product: an output, which may itself lie above the working directory.
    """
    if not name or "\0" in name or Path(name).is_absolute():
        return False
    above = Path(os.path.normpath(product))
    if ".." in Path(name).parts:
        return above.parts[:1] == ("..",) and above in (Path(name), *Path(name).parents)
    return True


def read_manifest(answer: dict[str, Any], expected: Iterable[str]) -> list[Product]:
    """Check what a pod lists: only what was asked for, and no name that leads elsewhere.

    Names may have any character that a file's may; whoever prints them makes them printable.

    Raises:
        RemoteError: naming what is not to be trusted.
    """
    allowed, found, listed = set(expected), [], answer.get("entries")
    if not isinstance(listed, list):
        raise RemoteError("untrusted output: no list of files")
    for entry in listed:
        try:
            named = {
                f.name: cast(Any, f.type)(entry[f.name]) for f in fields(Product) if f.name in entry
            }
            product = Product(**named)
            sound = product.is_sound(allowed)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise RemoteError("untrusted output: a malformed entry") from None
        if not sound:
            raise RemoteError(f"untrusted output: {product.product!r} {product.below!r}")
        found.append(product)
    links = {p.target for p in found if p.kind == "link"}
    for product in found:
        if links and links & set(product.target.parents):  # nothing may be written through a link
            raise RemoteError(f"untrusted output: {product.product!r} {product.below!r}")
    return found


class Fetch:
    """Brings the products of one job here.

    Attributes:
        attempt: part of the temporary names, so that no two processes write to one file.
    """

    def __init__(
        self, link: Link, job: str, attempt: str, limits: Limits, digests: Digests
    ) -> None:
        self._link, self._job, self._limits = link, job, limits
        self._attempt, self._digests = attempt, digests

    async def __call__(self, products: list[Product]) -> list[Product]:
        """Fetch what differs from what is here, prove it, and give it its name.

        In order of the times on the pod, so that what was written last there appears last here.

        Returns:
            What was fetched.

        Raises:
            LostError: if the connection does not hold long enough.
            RemoteError: if a file's digest is wrong again and again.
            JobError: if the disk here has no room for them.
        """
        wanted = await asyncio.to_thread(self._differing, products)
        need, free = sum(p.size for p in wanted), shutil.disk_usage(Path.cwd()).free
        if need > free:
            raise JobError(
                f"its products have {need} bytes, {free} are free here: free some and run again"
            )
        ready: set[Product] = set()
        try:
            files = [p for p in wanted if p.kind == "file"]
            for number in range(ATTEMPTS):
                todo = [p for p in files if p not in ready]
                if not todo:
                    break
                try:
                    await self._receive(todo, ready)
                except LostError:
                    if number == ATTEMPTS - 1:
                        raise
            if left := [p for p in files if p not in ready]:
                name = printable(str(left[0].target))
                raise RemoteError(f"{name}: arrived {ATTEMPTS} times with a wrong sha256")
            await asyncio.to_thread(self._complete, wanted)
            reach(Failpoint.BEFORE_RENAME)
            for product in sorted(wanted, key=lambda p: p.mtime_ns):
                self._name(product)
            reach(Failpoint.AFTER_RENAME)
        finally:
            for target in {Path(p.product) for p in wanted}:
                _sweep(target)
        return wanted

    def _differing(self, products: list[Product]) -> list[Product]:
        """Return what is not here; of a folder all, if one thing is not or one too many is."""
        differing = {p for p in products if not self._is_here(p)}
        for folder in {p.product for p in products if p.kind == "folder" and not p.below}:
            there = {p.below for p in products if p.product == folder and p.below}
            here = {q.relative_to(folder).as_posix() for q in Path(folder).rglob("*")}
            if here != there:
                differing |= {p for p in products if p.product == folder}
        renewed = {p.product for p in differing}
        return [p for p in products if p.product in renewed]

    def _is_here(self, product: Product) -> bool:
        path = product.target
        if product.kind == "link":
            return path.is_symlink() and str(path.readlink()) == product.link
        if path.is_symlink() or not path.exists():
            return False
        if product.kind == "folder":
            return path.is_dir()
        state = path.stat()
        same = path.is_file() and state.st_size == product.size
        same = same and _permissions(state.st_mode) == product.permissions
        return same and self._digests(path) == product.sha256

    def _part(self, product: Product) -> Path:
        part = _part_of(Path(product.product), self._attempt)
        part = part / product.below if product.below else part
        part.parent.mkdir(parents=True, exist_ok=True)
        return part

    async def _receive(self, todo: list[Product], ready: set[Product]) -> None:
        """Receive files into their temporary names; those that are whole are added to `ready`."""
        request = {"job": self._job, "files": [[p.product, p.below, p.size] for p in todo]}
        reach(Failpoint.COPYING)
        left = b""
        async with aclosing(
            self._link.stream("get", request, patience=self._limits.silent)
        ) as stream:
            for product in todo:
                part = self._part(product)
                digest, size = hashlib.sha256(), product.size
                with part.open("wb") as file:
                    while size:
                        left = left or await anext(stream, b"")
                        if not left:
                            raise LostError("the transfer was cut")
                        piece, left = left[:size], left[size:]
                        file.write(piece)
                        digest.update(piece)
                        size -= len(piece)
                    if len(todo) <= MANY:
                        file.flush()
                        os.fsync(file.fileno())
                if digest.hexdigest() == product.sha256:
                    ready.add(product)
                else:
                    part.unlink()
            async for _ in stream:
                pass

    def _complete(self, wanted: list[Product]) -> None:
        """Make folders and links, give files their permissions, and put all on the disk."""
        folders = [p for p in wanted if p.kind == "folder"]
        for product in folders:
            self._part(product).mkdir(exist_ok=True)
        for product in (p for p in wanted if p.kind == "file"):
            _permit(self._part(product), *product.permissions)
        for product in (p for p in wanted if p.kind == "link"):
            self._part(product).symlink_to(product.link)
        for product in reversed(folders):  # what is in them was made
            if product.below:
                _permit(self._part(product), True, product.permissions[1])
        if len(wanted) > MANY:
            os.sync()

    def _name(self, product: Product) -> None:
        """Give what is whole its own name; its time is now, by this machine's clock."""
        target = Path(product.product)
        part = _part_of(target, self._attempt)
        if not part.exists():
            return  # the folder has its name already
        os.utime(part)
        if target.is_dir() and not target.is_symlink():
            _remove(target)
        part.replace(target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _part_of(target: Path, attempt: str) -> Path:
    """Return where a product waits for its name: a short one, since its own may be the longest."""
    return target.with_name(f".{_short(target.name)}.{_short(attempt)}.part")


def _short(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]


def _permissions(mode: int) -> tuple[bool, bool]:
    """Tell whether the owner of a file or folder may execute it, and write to it."""
    return bool(mode & stat.S_IXUSR), bool(mode & stat.S_IWUSR)


def _permit(path: Path, executes: bool, writes: bool) -> None:
    """Give a file or folder permissions, as far as this user's umask lets others have them."""
    path.chmod((0o777 if executes else 0o666) & ~_umask() & (0o777 if writes else 0o555))


@cache
def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _remove(folder: Path) -> None:
    """Remove a folder, also where it or one in it may not be written to."""
    for place, _, _ in os.walk(folder):
        Path(place).chmod(0o700)
    shutil.rmtree(folder)


def _sweep(target: Path) -> None:
    """Remove what earlier transfers of an output left behind."""
    for part in target.parent.glob(f".{_short(target.name)}.*.part"):
        with suppress(OSError):
            if part.is_dir() and not part.is_symlink():
                _remove(part)
            else:
                part.unlink()
