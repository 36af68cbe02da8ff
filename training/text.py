"""Text to train on: documents out of Debian packages whose licences let anyone publish the model.

    python training/text.py FOLDER

FOLDER holds the packages of packages.tsv, fetched by `apt-get download NAME=VERSION`; each is
compared with its digest. Beside them `train.jsonl` and `heldout.jsonl` are written, a document a
line: `document` (package and file), `text`. One file in 40 is held out, whole.
"""

import csv
import gzip
import hashlib
import html.parser
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BYTES = 22_000_000
"""The most text of one package: none shall be most of what a model reads."""

PIECE = 60_000
"""Longer files are cut at line ends into documents of about this many characters."""

REPEATS = 3
"""A line of over 30 characters is kept so often: headers and licences repeat in every file."""

HELD_OUT = 1 / 40
"""Share of the files that is held out."""

LEFT_OUT = re.compile(
    r"genindex|py-modindex|search|/implementors/|sidebar-items|all\.html|print\.html|type\.|"
    r"/core_arch/|/(first|second|2018)-edition/|/changelog|copyright$|/test/|/idlelib/|/lib2to3/"
)
"""Files that are lists of links, copies of other files, or tables of constants."""


class Package(NamedTuple):
    """A row of packages.tsv."""

    package: str
    version: str
    sha256: str
    licence: str
    folder: str


class Words(html.parser.HTMLParser):
    """The words of a page's main part, with the line ends of its code."""

    BREAKS = re.compile("p|div|br|li|tr|h[1-6]|pre|table|d[dt]|section|t[dh]")
    SILENT = re.compile("script|style|nav|head|footer|svg|math|form|select|button")

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._silent = self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note that words to leave out begin, or code; end a line."""
        self._silent += bool(self.SILENT.fullmatch(tag))
        self._code += tag == "pre"
        if self.BREAKS.fullmatch(tag) and not (self._code and tag != "pre"):
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Note that they end."""
        self._silent -= bool(self.SILENT.fullmatch(tag)) and self._silent > 0
        self._code -= tag == "pre" and self._code > 0
        if self.BREAKS.fullmatch(tag) and not self._code:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep words; of their spaces one."""
        if not self._silent:
            self._parts.append(data if self._code else re.sub(r"\s+", " ", data))

    @classmethod
    def of(cls, page: str) -> str:
        """Return the words of a page."""
        words = cls()
        words.feed(page)
        text = "".join(words._parts).replace("\xa0", " ").replace("¶", "").replace("\u200b", "")
        return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"[ \t]+\n|\n (?=\S)", "\n", text)).strip()


def unpack(package: Package, folder: Path, place: Path) -> Path:
    """Compare a package with its digest, unpack it, and return the folder of its texts.

    Raises:
        SystemExit: It is absent, or is another; the message says how to fetch it.
    """
    found = sorted(folder.glob(f"{package.package}_*.deb"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in found]
    if package.sha256 not in digests:
        name = f"{package.package}={package.version}"
        raise SystemExit(f"{folder}: {package.package}: run apt-get download {name}")
    deb = found[digests.index(package.sha256)]
    subprocess.run(["dpkg-deb", "--extract", str(deb), str(place)], check=True)
    return place / package.folder


def read(path: Path) -> str:
    """Return the text of a file, out of its compression and its HTML."""
    data = path.read_bytes()
    if path.suffix in {".gz", ".dz"}:
        data = gzip.decompress(data)
    text = data.decode("utf-8", "replace")
    return Words.of(text) if ".html" in path.suffixes[-2:] else text


def pieces(text: str) -> Iterator[str]:
    """Cut a text at the first empty line after `PIECE` characters; at any, if none comes."""
    held: list[str] = []
    size = 0
    for line in text.split("\n"):
        held.append(line)
        size += len(line) + 1
        if size >= 2 * PIECE or (size >= PIECE and not line):
            yield "\n".join(held)
            held, size = [], 0
    if held:
        yield "\n".join(held)


def share(name: str) -> float:
    """Return a number from 0 to 1 that depends on a name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


def documents(package: Package, folder: Path, seen: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each document of a package, in an order that no name decides."""
    suffixes = {".html", ".gz", ".py", ".dz", ".txt"}
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes]
    names = {f"{package.package}/{path.relative_to(folder)}": path for path in paths}
    for name in sorted(names, key=share):
        if LEFT_OUT.search(f"/{name}") or names[name].is_symlink():
            continue
        for number, piece in enumerate(pieces(read(names[name]))):
            kept = []
            for line in map(str.rstrip, piece.split("\n")):
                if len(line) > 30:
                    seen[line] += 1
                    if seen[line] > REPEATS or len(line) > 4000:
                        continue
                kept.append(line)
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
            if len(text) >= 400 and sum(char < "\x80" for char in text) >= 0.93 * len(text):
                yield f"{name}#{number}", text


def main(folder: Path) -> None:
    """Write both files, and print how much each package gives."""
    with (Path(__file__).parent / "packages.tsv").open() as file:
        packages = [Package(**row) for row in csv.DictReader(file, delimiter="\t")]
    written: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    with (
        (folder / "train.jsonl").open("w") as train,
        (folder / "heldout.jsonl").open("w") as heldout,
    ):
        for package in packages:
            with tempfile.TemporaryDirectory() as place:
                for name, text in documents(package, unpack(package, folder, Path(place)), seen):
                    # a dictionary is one file: it is held out by the piece
                    file = name if package.package == "dict-wn" else name.partition("#")[0]
                    held = share(f"held out {file}") < HELD_OUT
                    part = f"{package.package} {'held out' if held else 'train'}"
                    if written[part] >= BYTES:
                        continue
                    line = json.dumps({"document": name, "text": text})
                    print(line, file=heldout if held else train)
                    written[part] += len(text.encode())
    for part, size in written.items():
        print(f"{part:32} {size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
