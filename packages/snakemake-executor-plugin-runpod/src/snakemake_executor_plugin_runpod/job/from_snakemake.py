"""From a job of Snakemake to a task: what travels, what comes back, and what decides the result."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Set
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_runpod.job.staging import Layout, layout, staged
from snakemake_executor_plugin_runpod.needs import needs
from snakemake_executor_plugin_runpod.settings import ExecutorSettings, words
from snakemake_executor_plugin_runpod.task import Task, key_of

SETUP_S = 3600
"""What a pod may live beyond its job's limit, in seconds."""

NO_PRODUCTS = ("pipe", "service")


def members(job: Any) -> list[Any]:
    """Return the jobs of a group, or the job itself."""
    return sorted(job.jobs, key=_place) if job.is_group() else [job]


def title(job: Any) -> str:
    """Name a job for people: its rule and wildcards."""
    each = members(job)
    names = [" ".join([one.rule.name, *map(str, one.wildcards_dict.values())]) for one in each]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"


def outputs(job: Any) -> list[str]:
    """Return the paths that must be there when a job has ended.

    Temporary files that only the group itself reads stay on its pod.
    """
    each = members(job)
    read_inside = {str(f) for one in each for f in one.input}
    return [
        str(file)
        for one in each
        for file in one.output
        if _is_product(file) and not (_flagged(file, "temp") and str(file) in read_inside)
    ]


def updates(job: Any) -> list[str]:
    """Return the outputs that a job brings up to date instead of making them anew."""
    return [str(f) for one in members(job) for f in one.output if _flagged(f, "update")]


def inputs(job: Any) -> list[str]:
    """Return the files that a job reads and does not make itself."""
    each = members(job)
    made = {str(file) for one in each for file in one.output}
    read = (str(f) for one in each for f in one.input if not getattr(f, "is_storage", False))
    return [name for name in dict.fromkeys(read) if name not in made]


def logs(job: Any) -> list[str]:
    """Return a job's log and benchmark files."""
    each = members(job)
    found = [str(file) for one in each for file in one.log]
    return found + [str(one.benchmark) for one in each if one.benchmark]


def written_by(jobs: Iterable[Any]) -> frozenset[str]:
    """Return the paths of all that jobs write: outputs, logs and benchmarks."""
    return frozenset(
        os.path.normpath(str(path))
        for one in jobs
        for path in [*one.output, *one.log, *filter(None, [one.benchmark])]
    )


def resumes(job: Any, workflow: Any, key: str) -> bool:
    """Tell whether Snakemake waits for the end of this very job, which an earlier run submitted.

    Then a file that it writes is marked as incomplete, with our name of the job. Whoever forces the
    job, or has changed its code or parameters, does not wait but wants it anew.

    Args:
        job: of Snakemake, not submitted yet in this run.
        workflow: the job's.
        key: our name of the job.
    """
    dag, chosen = workflow.dag, workflow.dag_settings
    forced = set(chosen.forcerun) | (set(chosen.targets) if chosen.forcetargets else set())
    files = {os.path.normpath(name) for name in forced}
    known = {each for one in members(job) for each in workflow.persistence.external_jobids(one)}
    return key in known and not any(
        one.rule in dag.forcerules
        or files & {os.path.normpath(str(path)) for path in one.output}
        or dag.reason(one).is_provenance_triggered()
        for one in members(job)
    )


def identity(job: Any) -> list[Any]:
    """Return a job as Snakemake knows it: rule, wildcards, parameters, its own code."""
    return [
        [
            one.rule.name,
            sorted(one.wildcards_dict.items()),
            [repr(value) for value in one.params],
            sorted((name, repr(value)) for name, value in one.params.items()),
            _code(one),
        ]
        for one in members(job)
    ]


def task(
    job: Any,
    workflow: Any,
    settings: ExecutorSettings,
    *,
    command: str,
    declared: Mapping[str, str],
    written: Set[str],
) -> Task:
    """Describe a job.

    Args:
        job: of Snakemake; a group is one task.
        workflow: the job's.
        settings: of the user.
        command: that runs it on a pod.
        declared: variables that the workflow declares; they reach the pod in a file.
        written: paths that jobs of the workflow write, see `written_by`.

    Raises:
        ValueError: if it cannot run on a pod; the message says what to change.
    """
    need = needs(dict(job.resources.items()))
    most_s = (settings.max_hours or 0) * 3600
    limit_s = min(most_s, 60 * need.runtime_min) if need.runtime_min else most_s
    updated = updates(job)
    plan = plan_of(workflow, settings, inputs(job))
    secrets = dict(declared)
    if (token := os.environ.get("HF_TOKEN")) and "HF_TOKEN" not in secrets:
        secrets["HF_TOKEN_FILE"] = token
    names = words(settings.pass_env)
    key = key_of(title(job), [_place(one) for one in members(job)])
    staged_too = (plan.repository / name for name in words(settings.stage))
    read = {os.path.normpath(name) for name in inputs(job)}
    read |= {os.path.relpath(path, plan.work) for path in staged_too}
    return Task(
        key=key,
        title=title(job),
        rule=" ".join(sorted({one.rule.name for one in members(job)})),
        needs=need,
        limit_s=limit_s,
        lifetime_s=min(most_s, limit_s + SETUP_S),
        command=command,
        directory=plan.directory,
        pythonpath=plan.pythonpath,
        inputs=inputs(job),
        outputs=outputs(job),
        updates=updated,
        logs=logs(job),
        identity=identity(job),
        image=settings.image or "",
        idle=partial(plan.idle, read=read, written=written),
        stage=partial(staged, plan, [*inputs(job), *updated]),
        requirements=requirements(plan.repository, settings),
        snakemake=version("snakemake"),
        resumes=resumes(job, workflow, key),
        variables={name: os.environ[name] for name in names if name in os.environ},
        secrets=secrets,
    )


def plan_of(workflow: Any, settings: ExecutorSettings, names: Iterable[str]) -> Layout:
    """Lay out what is staged for a job with these inputs."""
    return layout(
        Path(workflow.main_snakefile),
        Path.cwd(),
        settings_files=[Path(path) for path in workflow.configfiles],
        inputs=names,
        listed=workflow.dag.get_sources,
        stage=words(settings.stage),
    )


def requirements(repository: Path, settings: ExecutorSettings) -> str:
    """Return the text of the jobs' requirements file.

    Raises:
        ValueError: if the file is not there.
    """
    if not settings.requirements:
        return f"snakemake=={version('snakemake')}\n"
    path = repository / settings.requirements
    if not path.is_file():
        raise ValueError(f"--runpod-requirements {settings.requirements}: {path} does not exist")
    return path.read_text(encoding="utf-8")


def _place(job: Any) -> Any:
    return [job.rule.name, sorted(job.wildcards_dict.items())]


def _code(job: Any) -> str:
    """Return a digest of a job's own code: its command, or its script."""
    if job.shellcmd:
        return str(job.shellcmd)
    script = job.rule.script or job.rule.notebook
    if not script:
        return str(job.rule.wrapper or "")
    path = script if Path(str(script)).is_absolute() else job.rule.basedir.join(script)
    try:
        return hashlib.sha256(Path(os.fspath(path)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return str(script)


def _flagged(file: Any, flag: str) -> bool:
    return bool(getattr(file, "flags", {}).get(flag))


def _is_product(file: Any) -> bool:
    held = getattr(file, "is_storage", False)
    return not held and not any(_flagged(file, flag) for flag in NO_PRODUCTS)
