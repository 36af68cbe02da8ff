"""From a job of Snakemake to a task: what travels, what comes back, and what decides the result."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from snakemake_executor_plugin_runpod.job.staging import Layout, layout, staged
from snakemake_executor_plugin_runpod.needs import needs
from snakemake_executor_plugin_runpod.settings import ExecutorSettings, words
from snakemake_executor_plugin_runpod.task import Task, key_of

SETUP_S = 3600
"""What a pod may live beyond its job's limit, in seconds."""

NO_PRODUCTS = ("pipe", "service")


def submitted(jobs: Iterable[Any]) -> list[Any]:
    """Return the jobs that are submitted in the place of single ones: groups, each once."""
    return list(dict.fromkeys(job.dag.get_job_group(job) or job for job in jobs))


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


def why_anew(job: Any, workflow: Any, key: str) -> str:
    """Say why Snakemake wants a job anew; nothing if it waits for the end of this very job.

    It waits for what an earlier run submitted and did not see end: then a file of the job is marked
    as incomplete, with our name of the job. Who forces a job, or has changed it, does not wait.

    Args:
        job: of Snakemake, not submitted yet in this run.
        workflow: the job's.
        key: our name of the job.
    """
    dag, each = workflow.dag, members(job)
    files = _forced_files(workflow)
    if any(one.rule in dag.forcerules or files & _paths(one.output) for one in each):
        return "it is forced"
    if any(dag.reason(one).is_provenance_triggered() for one in each):
        return "its code, parameters or environment have changed"
    if not any(_is_marked(one, workflow.persistence, key) for one in each):
        return "Snakemake does not wait for it"
    return ""


def _forced_files(workflow: Any) -> set[str]:
    """Return the files that the user forces by name, as Snakemake's own `workflow.py` finds them.

    Its list is of no use: the files that are marked as incomplete are added to it.
    """
    chosen, names = workflow.dag_settings, set(workflow.dag_settings.forcerun)
    if chosen.forcetargets:
        scheduling = workflow.scheduling_settings
        names |= set(chosen.targets) | set(chosen.until)
        names |= set(scheduling.prioritytargets) if scheduling else set()
    return _paths(names)


def _is_marked(job: Any, persistence: Any, key: str) -> bool:
    """Tell whether a file of a job is marked as incomplete with our name of the job.

    A store in a database keeps the name also when the mark is taken away, so both are asked for.
    """
    marks = persistence._filter_incomplete_keys([persistence._get_key(f) for f in job.output])
    return bool(marks) and key in persistence.external_jobids(job)


def _paths(names: Iterable[Any]) -> set[str]:
    return {os.path.relpath(str(name)) for name in names}


def identity(job: Any) -> list[Any]:
    """Return a job as Snakemake knows it: rule, wildcards, parameters, command or name of script.

    What a script holds is not in it: it is staged.
    """
    return [
        [
            one.rule.name,
            sorted(one.wildcards_dict.items()),
            plain(list(one.params)),
            plain(dict(one.params.items())),
            str(one.shellcmd or one.rule.script or one.rule.notebook or one.rule.wrapper or ""),
        ]
        for one in members(job)
    ]


def plain(value: Any) -> Any:
    """Return a value in a form that is the same in every process.

    Sets have no order there, and objects of unknown types may show their address: of these the type
    alone is taken. The code that makes them is staged.
    """
    if value is None or isinstance(value, str | int | float | bytes | PurePath):
        return repr(value)
    if isinstance(value, Mapping):
        return sorted([plain(key), plain(entry)] for key, entry in value.items())
    if isinstance(value, Set):
        return sorted(json.dumps(plain(entry)) for entry in value)
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return type(value).__qualname__


def refuse(job: Any, workflow: Any) -> None:
    """Refuse a job that could lose results, or cannot run on a pod.

    Raises:
        ValueError: with the way to mend it.
    """
    if updates(job) and not workflow.execution_settings.keep_incomplete:
        raise ValueError(
            f"rule {job.rule.name} updates its outputs: set keep-incomplete, else Snakemake "
            "deletes them all when the job fails"
        )
    for kind, names in (("input", inputs(job)), ("output", outputs(job)), ("log", logs(job))):
        if absolute := [name for name in names if Path(name).is_absolute()]:
            raise ValueError(
                f"rule {job.rule.name}: the {kind} {absolute[0]} has an absolute path, which a pod "
                "does not have: name it relative to the working directory"
            )
    for name in outputs(job):
        folder = next(p for p in Path(name).absolute().parents if p.exists())
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"{folder} cannot be written to: {name} could not come home")
    needs(dict(job.resources.items()))


def task(
    job: Any,
    workflow: Any,
    settings: ExecutorSettings,
    *,
    command: str,
    declared: Mapping[str, str],
    seal: Callable[[str], str],
) -> Task:
    """Describe a job.

    Args:
        job: of Snakemake; a group is one task.
        workflow: the job's.
        settings: of the user.
        command: that runs it on a pod.
        declared: variables that the workflow declares; they reach the pod in a file.
        seal: makes a digest of a secret that nobody else can make.

    Raises:
        ValueError: if it cannot run on a pod; the message says what to change.
    """
    need = needs(dict(job.resources.items()))
    most_s = (settings.max_hours or 0) * 3600
    limit_s = min(most_s, 60 * need.runtime_min) if need.runtime_min else most_s
    updated = updates(job)
    plan = plan_of(workflow, settings, inputs(job), [*outputs(job), *logs(job)])
    names = words(settings.pass_env)
    key = key_of(title(job), [_place(one) for one in members(job)])
    staged_too = (plan.repository / name for name in words(settings.stage))
    read = _paths(inputs(job)) | {os.path.relpath(path, plan.work) for path in staged_too}
    written = _paths([*outputs(job), *updated, *logs(job)])
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
        partial=outputs(job) if workflow.execution_settings.keep_incomplete else updated,
        logs=logs(job),
        identity=identity(job),
        image=settings.image or "",
        decides_nothing=partial(plan.decides_nothing, read=read, written=written),
        stage=partial(staged, plan, [*inputs(job), *updated]),
        requirements=requirements(plan.repository, settings),
        snakemake=version("snakemake"),
        anew=why_anew(job, workflow, key),
        variables={n: os.environ[n] for n in names if n in os.environ and n != "HF_TOKEN"},
        trusts_all="HF_TOKEN" in names,
        secrets=_secrets(declared, asked="HF_TOKEN" in names or bool(need.hub)),
        sealed={name: seal(value) for name, value in declared.items()},
    )


def _secrets(declared: Mapping[str, str], *, asked: bool) -> dict[str, str]:
    """Return what reaches the pod in a file: the hub's token only where it is asked for."""
    token = os.environ.get("HF_TOKEN") if asked and "HF_TOKEN" not in declared else None
    return {**declared, **({"HF_TOKEN_FILE": token} if token else {})}


def plan_of(
    workflow: Any, settings: ExecutorSettings, read: Iterable[str], made: Iterable[str] = ()
) -> Layout:
    """Lay out what is staged for a job, by what it reads and what it makes."""
    return layout(
        Path(workflow.main_snakefile),
        Path.cwd(),
        settings_files=[Path(path) for path in workflow.configfiles],
        inputs=read,
        outputs=made,
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


def _flagged(file: Any, flag: str) -> bool:
    return bool(getattr(file, "flags", {}).get(flag))


def _is_product(file: Any) -> bool:
    held = getattr(file, "is_storage", False)
    return not held and not any(_flagged(file, flag) for flag in NO_PRODUCTS)
