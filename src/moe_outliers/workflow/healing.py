"""Missing or invalid: what is damaged is marked, so that -n shows it and a run builds exactly that.

Whenever Snakemake reads the rules, its main process checks every result against its receipt or
recorded digest. One process owns a folder at a time, from the start of its jobs to its end.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.storage import files
from moe_outliers.storage.receipts import Pair
from moe_outliers.workflow import damage, lock, paths

Say = Callable[[str], None]
"""Prints a line."""


class Marks(Protocol):
    """The record of incomplete outputs: what has a mark there is built again."""

    def add(self, output: str) -> None:
        """Mark an output as incomplete."""

    def remove(self, output: str) -> None:
        """Take the mark off an output, if it has one."""

    def names_a_job(self, output: str) -> bool:
        """Tell whether the mark of an output names a job on another machine."""


@dataclass(frozen=True)
class Checked:
    """Every result that exists.

    Attributes:
        damaged: the reason by path.
        whole: the paths of the others.
    """

    damaged: dict[Path, str]
    whole: list[Path]


def claim(say: Say) -> TextIO | None:
    """Take the lock of this folder to check its results.

    Returns:
        The lock, which the caller closes; None, and a line is said, if a build holds it.

    Raises:
        ValueError: if a folder cannot be written to; the message names it.
    """
    if folder := lock.unwritable(paths.STATE, paths.RESULTS):
        raise ValueError(f"{folder} cannot be written to: mend that, and run again")
    claimed, who = lock.claim(paths.OWNER, say)
    if claimed is None:
        say(f"another run is under way here: {who}; nothing is checked or marked beside it")
    return claimed


def clear_after_dead_owner() -> None:
    """Remove what a killed run left: its locks, its copies of outputs, its half-written files."""
    for folder in ("locks", "backups"):
        shutil.rmtree(Path(".snakemake", folder), ignore_errors=True)
    for path in [*files.below(paths.RESULTS), *files.below(paths.STATE)]:
        if path.name.startswith(".") and path.name.endswith(files.PART):
            files.remove(path)


def check(
    models: Mapping[str, list[Pair]], is_product: Callable[[Path], bool], *, full: bool
) -> Checked:
    """Check every result that exists.

    Args:
        models: the batches of each model by slug.
        is_product: tells whether a path is the output of a rule other than `extract`.
        full: hash every file; otherwise only those whose size or time of change is another.
    """
    hashes, ids = damage.caches(full=full)
    products = [
        path
        for path in files.below(paths.RESULTS)
        if not any(part.startswith(".") for part in path.parts) and is_product(path)
    ]
    faults = ((path, damage.product_fault(path, hashes)) for path in products)
    damaged = {path: fault for path, fault in faults if fault}
    for model, pairs in models.items():
        damaged.update(damage.model_faults(model, pairs, hashes, ids))
    hashes.save()
    ids.save()
    pairs = [pair for pairs in models.values() for pair in pairs if pair.statistics.exists()]
    whole = [path for pair in pairs if pair.statistics not in damaged for path in pair[:2]]
    return Checked(damaged, whole + [path for path in products if path not in damaged])


def mark(checked: Checked, marks: Marks, say: Say) -> None:
    """Mark what is damaged as incomplete, and take the marks off what is whole.

    A file whose mark names a job elsewhere is left alone: that job is still at work.
    """
    for path, reason in checked.damaged.items():
        say(f"{path}: {reason}: will be built again")
        if not marks.names_a_job(str(path)):
            marks.add(str(path))
    for path in checked.whole:
        if not marks.names_a_job(str(path)):
            marks.remove(str(path))
    reach(Failpoint.HEALED)


def refuse_without_gpu(rules: Collection[str], *, executor: str, device: str) -> None:
    """Stop before any download if the forward passes would have to run here, without a GPU.

    Args:
        rules: names of the rules that have jobs to run.
        executor: its name, `local` for this machine.
        device: the setting `extract.device`.

    Raises:
        ValueError: naming the two ways out.
    """
    here = executor == "local" and device != "cpu"
    if here and "extract" in rules and not shutil.which("nvidia-smi"):
        raise ValueError(
            "this machine has no NVIDIA GPU. Two ways out: `snakemake --profile runpod` rents one, "
            "`make demo` runs miniature models on the CPU (or set extract: {device: cpu})"
        )


def own(say: Say) -> TextIO:
    """Take this folder for a build.

    Returns:
        The lock, signed; it is held until the process ends, so the caller keeps a reference.

    Raises:
        ValueError: if another build holds the folder, or has worked here since results were
            checked; the message names it.
    """
    claimed, who = lock.claim(paths.OWNER, say)
    if claimed is None:
        raise ValueError(f"this folder is in use by {who}: wait for it, or end it")
    if who:
        claimed.close()
        raise ValueError(f"{who} has worked here since this run looked: run it again")
    lock.sign(claimed)
    reach(Failpoint.OWNED)
    return claimed


def remove_damaged(damaged: Collection[Path], jobs: Iterable[tuple[str, list[Path]]]) -> None:
    """Remove what this run builds again: nothing damaged outlives a job that fails.

    Args:
        damaged: paths of damaged results.
        jobs: the rule and the outputs of every job of this run.
    """
    for rule, outputs in jobs:
        for path in set(damaged) & set(outputs):
            files.remove(path)
            if rule == "extract":
                files.remove(path.with_suffix(".json"))


def receipts_prove_tokens(
    pairs: Iterable[Pair],
    tokens: Path,
    damaged: Collection[Path],
    has_record: Callable[[Path], bool],
) -> bool:
    """Tell whether a model's receipts, not the times of files, prove that its tokens are the same.

    A tokens file that is built again has the same bytes as before, and where Snakemake has no
    record of the batches, their receipts hold the digest of every sequence's ids. Neither must
    send the model to a GPU again.

    Args:
        pairs: the model's batches.
        tokens: its tokens file.
        damaged: paths of damaged results.
        has_record: tells whether Snakemake has a record of how a file was made.

    Returns:
        True if every batch is whole, and the texts or tokens are built again or some batch has no
        record.
    """
    pairs = list(pairs)
    whole = all(p.exists() and r.exists() and p not in damaged for p, r, _ in pairs)
    rebuilt = any(not p.exists() or p in damaged for p in (Path(paths.TEXTS), tokens))
    return whole and (rebuilt or not all(has_record(pair.statistics) for pair in pairs))
