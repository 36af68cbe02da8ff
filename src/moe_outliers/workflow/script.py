"""Runs the script of a rule: log, error message, and the digests of what it wrote."""

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from moe_outliers.failpoints import Failpoint, reach
from moe_outliers.storage import digests, files
from moe_outliers.workflow import paths

CONTROLLER = "MOE_OUTLIERS_CONTROLLER"
"""Environment variable with the process id of Snakemake, which starts the scripts."""

ORPHANED_S = 0.2
"""Seconds between two looks whether Snakemake still runs."""


def run(main: Callable[[Any], None], job: Any, *, record_digests: bool = True) -> None:
    """Run the main function of a rule's script.

    Log records go to the rule's log, the traceback of a failure too; on the terminal a failure is
    one message. After success the digest of every output is recorded, so that a later run can tell
    a file that was damaged since. If Snakemake is killed, this process ends too: it must not write
    into the files of the next run.

    Args:
        main: takes the job and writes its outputs.
        job: Snakemake's job: log, output and the rest.
        record_digests: False for a rule whose outputs come with receipts of their own.

    Raises:
        SystemExit: with status 1, if main raised an exception.
    """
    end_with_controller()
    handler = logging.FileHandler(job.log[0], mode="w", encoding="utf-8")
    handler.setFormatter(_Printable("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    try:
        main(job)
        reach(Failpoint.BEFORE_DIGEST)
        if record_digests:
            for product in job.output:
                record(product)
    except Exception as error:
        logging.exception("the job failed")
        print(f"error: {said(error)}\n(the traceback is in {job.log[0]})", file=sys.stderr)
        raise SystemExit(1) from None


def said(error: Exception) -> str:
    """Format an exception for the user; add the fix if the disk is full."""
    told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    if os.strerror(errno.ENOSPC) in told:
        told += "\na disk is full: free some and run the same command again; nothing is lost"
    return files.printable(told)


class _Printable(logging.Formatter):
    """Replaces control characters, so that a name in the log cannot move a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return files.printable(super().format(record))


def announce() -> None:
    """Tell all processes that this one starts that it is Snakemake, which they must not outlive."""
    os.environ[CONTROLLER] = str(os.getpid())


def end_with_controller() -> None:
    """Watch the process that `announce` named, and end this one when it is gone.

    The parent process would not do: a script that is orphaned before it looks has another one.
    """
    pid = int(os.environ.get(CONTROLLER, "0"))
    if not pid:
        return

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            controller = psutil.Process(pid)
            while controller.is_running() and controller.status() != psutil.STATUS_ZOMBIE:
                time.sleep(ORPHANED_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def record(product: str | Path) -> None:
    """Record the digest of a product of a rule, below results/.digests."""
    entry = {"path": str(product), "sha256": digests.digest(product)}
    files.write_json(paths.record_of(product), entry)
