"""Finds damaged results: checks statistics files against receipts, all others against digests."""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from moe_outliers.storage import digests, files, receipts
from moe_outliers.storage.digests import DigestCache
from moe_outliers.workflow import paths


def token_ids(tokens: Path) -> str:
    """Return the digests of each sequence's token ids, separated by spaces; empty if damaged."""
    from moe_outliers import tokenization
    from moe_outliers.storage import parquet

    try:
        return " ".join(parquet.read(tokens, tokenization.SCHEMA)["ids_sha256"].to_pylist())
    except ValueError:
        return ""


def caches(*, full: bool) -> tuple[DigestCache, DigestCache]:
    """Return the digest cache and the token-id cache; `full` ignores what they hold."""
    ids = DigestCache(paths.IDS_CACHE, full=full, read=token_ids)
    return DigestCache(paths.DIGEST_CACHE, full=full), ids


def pair_faults(
    pairs: Iterable[receipts.Pair], sha256: Callable[[Path], str], ids: str = ""
) -> dict[Path, str]:
    """Check the batches of one model.

    Args:
        pairs: the batches.
        sha256: hashes a file; a cache of digests may stand in.
        ids: as `token_ids` returns them; sequences that they lack are not compared.

    Returns:
        The reason by path of the statistics file, for each invalid pair of which at least one file
        exists; without either it is missing, not invalid. If batches were made with different
        versions, dtypes or checkpoints, all but the largest group are invalid.
    """
    faults: dict[Path, str] = {}
    origins: dict[Path, str] = {}
    known = dict(enumerate(ids.split()))
    for statistics, receipt, expected in pairs:
        if not statistics.exists() and not receipt.exists():
            continue
        wanted = expected
        if known.keys() >= set(expected.sequences):
            wanted = replace(expected, ids_sha256=[known[s] for s in expected.sequences])
        if fault := receipts.fault(statistics, receipt, wanted, sha256):
            faults[statistics] = fault
        else:
            origins[statistics] = _origin(receipts.read(receipt))
    if len(set(origins.values())) > 1:
        usual = Counter(origins.values()).most_common(1)[0][0]
        for statistics, origin in origins.items():
            if origin != usual:
                faults[statistics] = f"made with {origin}, the other batches with {usual}"
    return faults


def model_faults(
    model: str,
    pairs: list[receipts.Pair],
    sha256: Callable[[Path], str],
    ids: Callable[[Path], str],
) -> dict[Path, str]:
    """Check the batches of one model, with its tokens, and the verdict on them.

    Args:
        model: slug of the model.
        pairs: its batches.
        sha256: hashes a file; a cache of digests may stand in.
        ids: `token_ids`, or a cache of it.

    Returns:
        The reason by path of the statistics file, as `pair_faults`; and of the verdict, if a batch
        that it judges is missing.
    """
    tokens, verdict = (Path(p.format(model=model)) for p in (paths.TOKENS, paths.VERDICT))
    known = tokens.is_file() and not product_fault(tokens, sha256)
    faults = pair_faults(pairs, sha256, ids(tokens) if known else "")
    gone = [pair for pair in pairs if not any(path.exists() for path in pair[:2])]
    if verdict.exists() and gone:
        faults[verdict] = "a batch that it judges is missing"
    return faults


def product_fault(product: Path, sha256: Callable[[Path], str]) -> str | None:
    """Compare a product of a rule with its recorded digest; return what is wrong, or None."""
    record = paths.record_of(product)
    if not record.is_file():
        return "its digest was never recorded"
    try:
        entry = files.read_json(record)
        recorded = (entry["path"], entry["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        return f"its recorded digest is unreadable: {error}"
    if recorded[0] != str(product):
        return f"its recorded digest is of {recorded[0]}"
    if recorded[1] != digests.digest(product, sha256):
        return "the content differs from its recorded digest"
    return None


def refuse_damaged(directory: Path, products: Iterable[str]) -> None:
    """Make sure that products exist and are as their rules wrote them.

    Raises:
        ValueError: if one does not; the message names the first.
    """
    with chdir(directory):
        hashes = DigestCache(paths.DIGEST_CACHE)
        for name in products:
            if not Path(name).exists():
                raise ValueError(f"{directory / name} is not there: run snakemake first")
            if fault := product_fault(Path(name), hashes):
                raise ValueError(f"{directory / name}: {fault}: run snakemake first")


def _origin(receipt: receipts.Receipt) -> str:
    versions = " ".join(f"{name} {version}" for name, version in sorted(receipt.versions.items()))
    checkpoint = f", checkpoint {receipt.checkpoint[:12]}" if receipt.checkpoint else ""
    return f"{versions}, {receipt.dtype}{checkpoint}"
