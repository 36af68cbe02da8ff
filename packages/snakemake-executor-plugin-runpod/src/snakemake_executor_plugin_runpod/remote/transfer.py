"""Files to a pod and back: each is proven by its sha256 on both sides, and gets its name last."""

import asyncio
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

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
    """A file that a job has made, as the pod lists it.

    Attributes:
        product: the output's path, relative to the working directory.
        below: its name below the output if that is a folder, else empty.
    """

    product: str
    below: str
    size: int
    sha256: str
    mtime_ns: int

    @property
    def target(self) -> Path:
        """Where it goes here."""
        return Path(self.product, self.below) if self.below else Path(self.product)


def read_manifest(answer: dict[str, Any], expected: Iterable[str]) -> list[Product]:
    """Check what a pod lists: only what was asked for, and no name that leads elsewhere.

    Raises:
        RemoteError: naming what is not to be trusted.
    """
    allowed, found, listed = set(expected), [], answer.get("files")
    if not isinstance(listed, list):
        raise RemoteError("untrusted output: no list of files")
    for entry in listed:
        try:
            product = Product(**{f.name: cast(Any, f.type)(entry[f.name]) for f in fields(Product)})
        except (KeyError, TypeError, ValueError, OverflowError):
            raise RemoteError("untrusted output: a malformed entry") from None
        parts = Path(product.below).parts
        sound = (
            product.product in allowed
            and product.size >= 0
            and re.fullmatch("[0-9a-f]{64}", product.sha256)
            and not Path(product.below).is_absolute()
            and ".." not in parts
            and product.below.isprintable()
        )
        if not sound:
            raise RemoteError(f"untrusted output: {product.product!r} {product.below!r}")
        found.append(product)
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
        ready: dict[Product, Path] = {}
        try:
            for number in range(ATTEMPTS):
                todo = [p for p in wanted if p not in ready]
                if not todo:
                    break
                try:
                    await self._receive(todo, ready)
                except LostError:
                    if number == ATTEMPTS - 1:
                        raise
            if left := [p for p in wanted if p not in ready]:
                raise RemoteError(f"{left[0].target}: arrived {ATTEMPTS} times with a wrong sha256")
            reach(Failpoint.BEFORE_RENAME)
            for product in sorted(wanted, key=lambda p: p.mtime_ns):
                self._name(product, ready[product])
            reach(Failpoint.AFTER_RENAME)
        finally:
            for target in {Path(p.product) for p in wanted}:
                _sweep(target)
        return wanted

    def _differing(self, products: list[Product]) -> list[Product]:
        """Return the files that are not here; of a folder all, if one is not or one too many is."""
        differing = {p for p in products if not self._is_here(p)}
        folders = {p.product for p in products if p.below}
        for folder in folders:
            files = {p.below for p in products if p.product == folder}
            here = {
                q.relative_to(folder).as_posix() for q in Path(folder).rglob("*") if q.is_file()
            }
            if here != files:
                differing |= {p for p in products if p.product == folder}
        renewed = {p.product for p in differing if p.below}
        return [p for p in products if p in differing or p.product in renewed]

    def _is_here(self, product: Product) -> bool:
        path = product.target
        same = path.is_file() and not path.is_symlink() and path.stat().st_size == product.size
        return same and self._digests(path) == product.sha256

    def _part(self, product: Product) -> Path:
        target = Path(product.product)
        part = target.with_name(f".{target.name}.{self._attempt}.part")
        part = part / product.below if product.below else part
        part.parent.mkdir(parents=True, exist_ok=True)
        return part

    async def _receive(self, todo: list[Product], ready: dict[Product, Path]) -> None:
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
                    file.flush()
                    os.fsync(file.fileno())
                if digest.hexdigest() == product.sha256:
                    ready[product] = part
                else:
                    part.unlink()
            async for _ in stream:
                pass

    def _name(self, product: Product, part: Path) -> None:
        """Give what is whole its own name; its time is now, by this machine's clock."""
        target = Path(product.product)
        if product.below:
            part = target.with_name(f".{target.name}.{self._attempt}.part")
            if not part.exists():
                return  # the folder has its name already
        os.utime(part)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        part.replace(target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(target: Path) -> None:
    """Remove what earlier transfers of an output left behind."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
