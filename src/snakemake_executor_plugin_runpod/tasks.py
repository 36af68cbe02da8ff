"""What a job is to the machinery that rents a pod for it: everything it needs, and no Snakemake."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.offers import Needs
from snakemake_executor_plugin_runpod.transfer import Digests, Item


@dataclass(frozen=True)
class Task:
    """One job.

    Attributes:
        key: names the job in this working directory, the same in every run.
        title: names it for people.
        rule: several jobs of one rule are tried out once.
        limit_s: seconds that the job may run.
        lifetime_s: seconds that its pod may live.
        command: what runs on the pod, in the folder `directory`.
        directory: the working directory as seen from the root of what is staged, with slashes.
        pythonpath: folders of what is staged that are on Python's path.
        inputs: paths, relative to the working directory.
        outputs: paths that must exist afterwards, relative to the working directory.
        updates: those of them that the job brings up to date, and that stay if it fails.
        logs: its log and benchmark files, which are fetched in any case.
        identity: what decides its result beside its inputs: rule, parameters, code.
        stage: lists everything that is staged: pairs of name and path.
        requirements: text of the requirements file.
        variables: of its process; none is secret.
        secrets: variables that reach the pod in a file only.
    """

    key: str
    title: str
    rule: str
    needs: Needs
    limit_s: float
    lifetime_s: float
    command: str
    directory: str
    pythonpath: list[str]
    inputs: list[str]
    outputs: list[str]
    updates: list[str]
    logs: list[str]
    identity: Any
    stage: Callable[[], list[tuple[str, Path]]]
    requirements: str
    snakemake: str
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def fingerprint(self, digests: Digests) -> str:
        """Hash what decides the result: the identity, and the content of every input."""
        files = [[name, _digest(Path(name), digests)] for name in sorted(self.inputs)]
        text = json.dumps([self.identity, files], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def items(self, digests: Digests) -> list[Item]:
        """Describe everything that is staged."""
        from snakemake_executor_plugin_runpod.transfer import item

        return [item(name, path, digests) for name, path in self.stage()]


def key_of(title: str, identity: Any) -> str:
    """Return a name for a job that is safe everywhere, and the same in every run."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:23].strip("-")
    text = json.dumps(identity, sort_keys=True, default=repr)
    return f"{slug or 'job'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _digest(path: Path, digests: Digests) -> str:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        listed = [[p.relative_to(path).as_posix(), digests(p)] for p in files]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return digests(path) if path.is_file() else "absent"
