"""Tries a job's staged files out here, before a pod is rented: does the workflow parse from them?

The files that would be staged are copied to a folder, and the job's own command runs there as a dry
run, in a Python that refuses to read anything that a pod would not have. A file that was forgotten
costs a second here, and minutes of a pod there.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from snakemake_executor_plugin_runpod.api.errors import printable
from snakemake_executor_plugin_runpod.failures import JobError
from snakemake_executor_plugin_runpod.task import Task

SMALL = 1_000_000
"""Files up to this many bytes are copied; larger ones are linked."""

PATIENCE_S = 300

SECRETS = ("RUNPOD_API_KEY", "HF_TOKEN")


def rehearse(task: Task, folder: Path) -> None:
    """Try a job out.

    Args:
        task: the job.
        folder: a folder that may be used and is removed afterwards.

    Raises:
        JobError: if the workflow does not parse from the staged files; with its own message.
    """
    shutil.rmtree(folder, ignore_errors=True)
    root, programs = folder / "root", folder / "bin"
    try:
        for name, path in task.stage():
            _place(path, root / name)
        work = root / task.directory
        work.mkdir(parents=True, exist_ok=True)
        programs.mkdir()
        python = programs / "python"
        guard = Path(__file__).with_name("guard.py")
        words = f'exec "{sys.executable}" "{guard}" "{root.resolve()}" "$@"'
        python.write_text(f"#!/bin/sh\n{words}\n")
        python.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if name not in SECRETS}
        kept["PATH"] = f"{programs.resolve()}{os.pathsep}{kept.get('PATH', os.defpath)}"
        kept["PYTHONPATH"] = os.pathsep.join(str((root / p).resolve()) for p in task.pythonpath)
        done = subprocess.run(
            ["bash", "-c", f"{task.command} --dry-run"],
            cwd=work,
            env=kept | task.variables | dict.fromkeys(task.secrets, "rehearsal"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"parsing the workflow took longer than {PATIENCE_S} s") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        raise JobError(
            "the workflow does not parse from the files that would be on the pod, so none was "
            "rented. What git does not track is not staged: commit it, or name it by "
            f"--runpod-stage. It said:\n{_last(done.stdout + done.stderr)}"
        )


def _place(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and not path.is_file():
        target.symlink_to(path.readlink())
    elif path.stat().st_size <= SMALL:
        shutil.copy2(path, target)
    else:
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copy2(path, target)


def _last(text: str) -> str:
    lines = [printable(line) for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line[:300]}" for line in lines[-12:])
