"""What this workflow uses of Snakemake beyond its documented interface, all in one place.

Rule files import this module, nothing else does: the science runs without Snakemake. `check` looks
for every name before any is used. A version that lacks one is then refused in one sentence.
"""

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError

TESTED = ("9.27.0", "9.27.1")
"""Oldest and newest version of Snakemake that the workflow's tests have passed with."""

NAMES = (
    "snakemake.dag:DAG.needrun_jobs",
    "snakemake.io:strip_wildcard_constraints",
    "snakemake.persistence:FileBackupMixin.backup_output",
    "snakemake.persistence:FileBackupMixin.restore_output",
    "snakemake.persistence.file:FilePersistence._get_external_jobids",
    "snakemake.persistence.file:FilePersistence._mark_incomplete",
    "snakemake.persistence.file:FilePersistence._read_record",
    "snakemake.persistence.file:FilePersistence._unmark_incomplete",
    "snakemake.rules:Rule.is_producer",
    "snakemake.workflow:Workflow.executor_plugin",
    "snakemake.workflow:Workflow.is_main_process",
    "snakemake.workflow:Workflow.persistence",
)
"""Every name that is used here, as MODULE:NAME."""


def check() -> None:
    """Make sure that this Snakemake has every name that healing needs.

    Raises:
        WorkflowError: if it lacks some; the message names them, and the versions that work.
    """
    missing = [name for name in NAMES if not _exists(name)]
    if missing:
        raise WorkflowError(
            f"Snakemake {version('snakemake')} has no {', '.join(missing)}, which this workflow "
            f"needs to find and rebuild damaged results. It works with Snakemake {TESTED[0]} to "
            f"{TESTED[1]}: pip install snakemake=={TESTED[1]}"
        )


@contextmanager
def errors() -> Iterator[None]:
    """Show a ValueError as Snakemake shows its own errors: its message, without a traceback.

    Raises:
        WorkflowError: with the message of the ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise WorkflowError(str(error)) from None


class Marks:
    """Snakemake's own record of incomplete outputs: what has a mark there, it builds again."""

    def __init__(self, folder: Path = Path(".snakemake")) -> None:
        """Open the record in Snakemake's folder, which is made if it is missing."""
        from snakemake.persistence.file import FilePersistence

        self._store: Any = FilePersistence(nolock=True, path=folder.absolute())

    def add(self, output: str) -> None:
        """Mark an output as incomplete."""
        self._store._mark_incomplete(output, None)

    def remove(self, output: str) -> None:
        """Take the mark off an output, if it has one."""
        self._store._unmark_incomplete(output)

    def names_a_job(self, output: str) -> bool:
        """Tell whether the mark of an output names a job on another machine."""
        return bool(self._store._get_external_jobids([output]))


def keep_no_copies() -> None:
    """Make Snakemake keep no copies of outputs while a job updates them.

    Receipts and digests say what is whole. If the job fails, those copies would bring the old
    batches back over those that it has finished.
    """
    from snakemake.persistence import FileBackupMixin

    mixin: Any = FileBackupMixin
    mixin.backup_output = mixin.restore_output = lambda store, path: False


def has_record(workflow: Any, output: str | Path) -> bool:
    """Tell whether Snakemake has a record of the job that made an output."""
    return workflow.persistence._read_record(str(output)) is not None


def jobs_to_run(workflow: Any) -> list[tuple[str, list[Path]]]:
    """Return the rule and the outputs of every job that this run has yet to do."""
    return [(job.rule.name, list(map(Path, job.output))) for job in workflow.dag.needrun_jobs()]


def executor(workflow: Any) -> str:
    """Return the name of the executor that jobs go to, `local` for this machine."""
    return str(workflow.executor_plugin.name)


def is_made(workflow: Any, path: str | Path, *, besides: str) -> bool:
    """Tell whether a rule makes a path, not counting the rule named `besides`."""
    makers = (rule for rule in workflow.rules if rule.name != besides)
    return any(maker.is_producer(str(path)) for maker in makers)


def outputs(workflow: Any) -> list[str]:
    """Return the outputs of all rules, with wildcards but without the constraints on these."""
    from snakemake.io import strip_wildcard_constraints

    return [strip_wildcard_constraints(path) for rule in workflow.rules for path in rule.output]


def _exists(name: str) -> bool:
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return not getattr(found, "__isabstractmethod__", False)  # a base class may only announce it
