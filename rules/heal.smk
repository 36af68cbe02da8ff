"""Missing or invalid: what is damaged is marked, so that -n shows it and a run builds exactly that.

Reading this file checks every result against its receipt or recorded digest, in the main process
only. One process owns a folder at a time, from `onstart` to its end: .snakemake/moe-outliers/owner.
"""

import shutil
import sys
from functools import partial

from snakemake.persistence import FileBackupMixin
from snakemake.persistence.file import FilePersistence

from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.storage import files
from moe_outliers.workflow import damage, lock, paths
from moe_outliers.workflow.script import announce

say = partial(print, file=sys.stderr, flush=True)


def clear_after_dead_owner():
    """Remove what a killed run left: its locks, its copies of outputs, its half-written files."""
    for folder in ("locks", "backups"):
        shutil.rmtree(Path(".snakemake", folder), ignore_errors=True)
    for path in files.below(paths.RESULTS):
        if path.name.startswith(".") and path.name.endswith(files.PART):
            files.remove(path)


def find_damage():
    """Check every result that is there; the reasons go to `damaged`. Return what is whole."""
    hashes, ids = damage.caches(full=config["receipts"] == "full")
    makers = [each for each in workflow.rules if each.name != "extract"]
    products = [
        path
        for path in files.below(paths.RESULTS)
        if not any(part.startswith(".") for part in path.parts)
        and any(maker.is_producer(str(path)) for maker in makers)
    ]
    for path in products:
        if fault := damage.product_fault(path, hashes):
            damaged[path] = fault
    for model in models:
        damaged.update(damage.model_faults(model, pairs_of(model), hashes, ids))
    hashes.save()
    ids.save()
    pairs = [p for model in models for p in pairs_of(model) if p.statistics.exists()]
    whole = [path for p in pairs if p.statistics not in damaged for path in p[:2]]
    return whole + [path for path in products if path not in damaged]


def mark(store, whole):
    """Mark what is damaged as incomplete, and take the marks off what is whole.

    A file whose mark names a job elsewhere is left alone: that job is still at work.
    """
    for path, reason in damaged.items():
        say(f"{path}: {reason}: will be built again")
        if not store._get_external_jobids([str(path)]):
            store._mark_incomplete(str(path), None)
    for path in map(str, whole):
        if not store._get_external_jobids([path]):
            store._unmark_incomplete(path)


def refuse_without_gpu():
    """Stop before any download if the forward passes would have to run here, without a GPU.

    Raises:
        WorkflowError: naming the two ways out.
    """
    here = workflow.executor_plugin.name == "local" and config["extract"]["device"] != "cpu"
    needed = "extract" in {job.rule.name for job in workflow.dag.needrun_jobs()}
    if here and needed and not shutil.which("nvidia-smi"):
        raise WorkflowError(
            "this machine has no NVIDIA GPU. Two ways out: `snakemake --profile runpod` rents one, "
            "`make demo` runs miniature models on the CPU (or set extract: {device: cpu})"
        )


def remove_damaged():
    """Remove what this run builds again: nothing damaged outlives a job that fails."""
    for job in workflow.dag.needrun_jobs():
        for path in damaged.keys() & set(map(Path, job.output)):
            files.remove(path)
            if job.rule.name == "extract":
                files.remove(path.with_suffix(".json"))


# Receipts and digests say what is whole. Snakemake's copies of outputs that a job updates would, if
# the job fails, bring the old batches back over those that it has finished.
FileBackupMixin.backup_output = FileBackupMixin.restore_output = lambda store, path: False

announce()
if workflow.is_main_process:
    if place := lock.unwritable(paths.STATE, paths.RESULTS):
        raise WorkflowError(f"{place} cannot be written to: mend that, and run again")
    claimed, who = lock.claim(paths.OWNER, say)
    if claimed is None:
        say(f"another run is under way here: {who}; nothing is checked or marked beside it")
    else:
        clear_after_dead_owner()
        mark(FilePersistence(nolock=True), find_damage())
        reach(Failpoint.HEALED)
        claimed.close()


onstart:
    refuse_without_gpu()
    own, who = lock.claim(paths.OWNER, say)
    if own is None:
        raise WorkflowError(f"this folder is in use by {who}: wait for it, or end it")
    if who:
        raise WorkflowError(f"{who} has worked here since this run looked: run it again")
    lock.sign(own)
    workflow.globals["own"] = own  # the lock is held for as long as this process lives
    reach(Failpoint.OWNED)
    remove_damaged()
