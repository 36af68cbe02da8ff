"""Runs the real Snakemake in a process of its own, and reads what it says."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Said:
    """What a run printed.

    Attributes:
        code: exit status.
        text: standard output and standard error.
    """

    code: int
    text: str

    @property
    def jobs(self) -> dict[str, int]:
        """How many jobs of each rule the run has, from its table of job statistics."""
        table = self.text.partition("Job stats:")[2].partition("\n\n")[0]
        counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}
        return {name: n for name, n in counts.items() if name not in ("total", "all")}

    @property
    def nothing_to_do(self) -> bool:
        return "Nothing to be done" in self.text

    @property
    def damaged(self) -> dict[str, str]:
        """The reason by path of what was found damaged."""
        return dict(re.findall(r"^(results/\S+): (.*): will be built again$", self.text, re.M))


def command(*arguments: str | Path, directory: Path | None = None, overlay: Path | None = None):
    """Return the command line of a run of this workflow."""
    words = [sys.executable, "-m", "snakemake", "--quiet", "rules"]
    words += ["--configfile", str(overlay)] if overlay else []
    return [*words, "--directory", str(directory or "."), *map(str, arguments)]


def snakemake(
    *arguments: str | Path,
    directory: Path | None = None,
    overlay: Path | None = None,
    workflow: Path = ROOT,
    timeout: float = 580,
    **environment: str,
) -> Said:
    """Run this workflow to its end.

    Args:
        arguments: what follows the options on the command line.
        directory: where results go.
        overlay: settings that lie over config/config.yaml.
        workflow: the folder of the Snakefile.
        timeout: seconds.
        environment: variables added to this process's own.
    """
    done = subprocess.run(
        command(*arguments, directory=directory, overlay=overlay),
        cwd=workflow,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Said(done.returncode, done.stdout)
