"""What a job is to the machinery that rents a pod for it: everything it needs, and no Snakemake."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.digests import Digests, Item, item
from snakemake_executor_plugin_runpod.needs import Needs

STEPS = "RUNPOD_STEPS"
"""The variable that tells a job in which ways its pod is larger than was asked for."""

OF_THE_RUN = {
    "--attempt",  # what depends on it is among the parameters
    "--benchmark-extended",
    "--directory",  # the same folder, by whatever name
    "--drop-metadata",
    "--keep-incomplete",
    "--keep-storage-local-copies",
    "--latency-wait",
    "--local-groupid",
    "--max-threads",
    "--printshellcmds",
    "--quiet",
    "--rerun-triggers",
    "--scheduler",
    "--set-resource-scopes",
    "--shadow-prefix",
    "--skip-script-cleanup",
    "--unneeded-temp-files",
    "--verbose",
    "--wait-for-free-local-storage",
}
"""Options of Snakemake that say how a job is run and told of, not what it computes."""

SETS = {"--allowed-rules", "--shared-fs-usage", "--software-deployment-method", "--target-jobs"}
"""Options whose values Snakemake writes in any order."""


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
        partial: those that are fetched as they are if it fails.
        logs: its log and benchmark files, which are fetched in any case.
        identity: its rule, wildcards, parameters and command, as Snakemake knows them.
        image: of the container.
        stage: lists everything that is staged: pairs of name and path.
        decides_nothing: tells of what is staged, by its name, that it does not decide the result.
        requirements: text of the requirements file.
        anew: why a pod at work on the job is not taken over, and earlier products are not used;
            empty where Snakemake waits for this very job, which it was told is at work.
        variables: of its process; none is secret.
        secrets: variables that reach the pod in a file only.
        trusts_all: whether the token of the hub may go to hosts that are anybody's, too.
        sealed: for each of them that may decide the result a digest that nobody else can make.
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
    image: str
    stage: Callable[[], list[tuple[str, Path]]]
    decides_nothing: Callable[[str], bool]
    requirements: str
    snakemake: str
    anew: str
    partial: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    sealed: dict[str, str] = field(default_factory=dict)
    trusts_all: bool = False

    def items(self, digests: Digests) -> list[Item]:
        """Describe everything that is staged."""
        return [item(name, path, digests) for name, path in self.stage()]

    def recipe(self, items: Iterable[Item]) -> "Recipe":
        """Return all that decides the result.

        Args:
            items: everything that is staged.
        """
        others = {
            "parameters": self.identity,
            "the command": deciding_options(self.command),
            "the image": self.image,
            "the requirements": self.requirements,
            "the version of Snakemake": self.snakemake,
            "folders on the path of Python": self.pythonpath,
        }
        others |= {
            f"the variable {name}": value
            for name, value in (self.variables | self.sealed).items()
            if name != STEPS  # that decides the pod
        }
        files = {i.name: f"{i.kind} {i.digest}" for i in items if not self.decides_nothing(i.name)}
        return Recipe(files, {name: _hash(value) for name, value in others.items()})


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a job: each thing by its name, with a digest.

    Attributes:
        files: what is staged and may be read as code or input, by its name on the pod.
        others: parameters, command, image and the like.
    """

    files: Mapping[str, str]
    others: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """One digest of it all."""
        return _hash([self.files, self.others])

    def differences(self, other: "Recipe") -> list[str]:
        """Name what is not the same in both, files first."""
        return [
            name
            for one, two in ((self.files, other.files), (self.others, other.others))
            for name in sorted({*one, *two})
            if one.get(name) != two.get(name)
        ]


def key_of(title: str, identity: Any) -> str:
    """Return a name for a job that is safe everywhere, and the same in every run."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:23].strip("-")
    text = json.dumps(identity, sort_keys=True, default=repr)
    return f"{slug or 'job'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def deciding_options(command: str) -> list[list[str]]:
    """Return the options of a job's command line that can decide its result, sorted by their names.

    Args:
        command: as Snakemake writes it: some lists in it have no order, and options of how the job
            is run come and go with the run that submits it.
    """
    options: list[list[str]] = [[]]
    try:
        words = shlex.split(command)
    except ValueError:  # no shell would read it either: that it is said is not for here
        return [[command]]
    for word in words:
        if word.startswith("--"):
            options.append([word])
        else:
            options[-1].append(word)
    deciding = [
        [name, *(sorted(values) if name in SETS else values)]
        for name, *values in options[1:]
        if name not in OF_THE_RUN
    ]
    return [options[0], *sorted(deciding)]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
