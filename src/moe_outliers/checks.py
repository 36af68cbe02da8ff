"""What is damaged among the results: every check of a file at rest, with a memory of digests."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import chdir
from pathlib import Path

from moe_outliers import files, job, receipts

MEMORY = Path(".snakemake/moe-outliers/hashes.json")
"""Where a folder's digests are remembered."""


class Hashes:
    """Digests of files, remembered for as long as a file's size and time of change stay."""

    def __init__(self, memory: Path, *, full: bool = False) -> None:
        """Read the memory.

        Args:
            memory: JSON file; a missing or damaged one is forgotten.
            full: hash every file again.
        """
        self.memory = memory
        try:
            known = files.read_json(memory) if memory.is_file() and not full else {}
        except ValueError:
            known = {}
        self._known: dict[str, list[object]] = known if isinstance(known, dict) else {}
        self._seen: dict[str, list[object]] = {}

    def __call__(self, path: Path) -> str:
        """Return the sha256 of a file."""
        stat = path.stat()
        key = [stat.st_size, stat.st_mtime_ns]
        known = self._seen.get(str(path)) or self._known.get(str(path))
        if isinstance(known, list) and known[:2] == key and len(known) == 3:
            digest = str(known[2])
        else:
            digest = files.sha256(path)
        self._seen[str(path)] = [*key, digest]
        return digest

    def learn(self, path: Path, digest: str) -> None:
        """Take over the digest of a file that was hashed while it was written."""
        stat = path.stat()
        self._seen[str(path)] = [stat.st_size, stat.st_mtime_ns, digest]

    def save(self) -> None:
        """Remember what was asked for since."""
        if self._seen != self._known:
            files.write_json(self.memory, self._seen)


def pair_faults(pairs: Iterable[receipts.Pair], sha256: Callable[[Path], str]) -> dict[Path, str]:
    """Check the batches of one model.

    Returns:
        The reason by path of the statistics file, for each invalid pair that is there at least in
        part; a pair of which nothing is there is missing, not invalid. Where batches were made with
        several sets of versions, dtypes or checkpoints, all but the largest set are invalid.
    """
    faults: dict[Path, str] = {}
    made: dict[Path, str] = {}
    for statistics, receipt, expected in pairs:
        if not statistics.exists() and not receipt.exists():
            continue
        if fault := receipts.fault(statistics, receipt, expected, sha256):
            faults[statistics] = fault
        else:
            made[statistics] = _origin(receipts.read(receipt))
    if len(set(made.values())) > 1:
        usual = Counter(made.values()).most_common(1)[0][0]
        for statistics, origin in made.items():
            if origin != usual:
                faults[statistics] = f"made with {origin}, the other batches with {usual}"
    return faults


def product_fault(product: Path, sha256: Callable[[Path], str]) -> str | None:
    """Say what is wrong with a product of a rule, by its recorded digest; None if nothing is."""
    record = job.record_path(product)
    if not record.is_file():
        return "its digest was never recorded"
    try:
        entry = files.read_json(record)
        recorded = (entry["path"], entry["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        return f"its recorded digest is unreadable: {error}"
    if recorded[0] != str(product):
        return f"its recorded digest is of {recorded[0]}"
    if recorded[1] != job.digest(product, sha256):
        return "the content differs from its recorded digest"
    return None


def refuse_damaged(directory: Path, products: Iterable[str]) -> None:
    """Make sure that products are there and are what their rules wrote.

    Raises:
        ValueError: naming the first that is not.
    """
    with chdir(directory):
        hashes = Hashes(MEMORY)
        for name in products:
            if not Path(name).exists():
                raise ValueError(f"{directory / name} is not there: run snakemake first")
            if fault := product_fault(Path(name), hashes):
                raise ValueError(f"{directory / name}: {fault}: run snakemake first")


def _origin(receipt: receipts.Receipt) -> str:
    versions = " ".join(f"{name} {version}" for name, version in sorted(receipt.versions.items()))
    checkpoint = f", checkpoint {receipt.checkpoint[:12]}" if receipt.checkpoint else ""
    return f"{versions}, {receipt.dtype}{checkpoint}"
