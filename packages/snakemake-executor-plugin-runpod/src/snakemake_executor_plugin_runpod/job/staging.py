"""Which files a job needs on its pod, and where they lie there: as here, seen from each other."""

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

NEVER = {".snakemake", ".git"}

OWN = "/.snakemake/runpod/"

DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|copying|changelog|contributing|code_of_conduct)(\.(md|rst))?"
    r"|\.git(ignore|attributes|modules)|\.github/.*|docs?/.*\.(md|rst)",
    re.IGNORECASE,
)
"""What no job reads as code or input, by its name below the repository."""


@dataclass(frozen=True)
class Layout:
    """The folders that everything staged hangs from.

    Attributes:
        base: the nearest folder above all that is staged; it becomes the root on the pod.
        repository: the folder of the workflow's code.
        work: the working directory.
        sources: files of the workflow.
        tracked: whether git knows them, or a listing of Snakemake's was taken.
    """

    base: Path
    repository: Path
    work: Path
    sources: tuple[Path, ...]
    tracked: bool

    def name(self, path: Path) -> str:
        """Return a path's name below the root on the pod.

        Raises:
            ValueError: if it does not lie below the base.
        """
        absolute = _absolute(path)
        try:
            return absolute.relative_to(self.base).as_posix()
        except ValueError:
            raise ValueError(f"{path} lies outside of {self.base} and cannot be staged") from None

    def decides_nothing(self, name: str, *, read: Set[str], written: Set[str]) -> bool:
        """Tell whether something that is staged does not decide the result of a job.

        Args:
            name: below the root on the pod.
            read: what the job declares to read, relative to the working directory.
            written: what the job itself writes.
        """
        path = self.base / name
        below_work = os.path.relpath(path, self.work)
        places = {below_work, *map(str, Path(below_work).parents)}
        if places & read:
            return False
        below_repository = Path(os.path.relpath(path, self.repository)).as_posix()
        return bool(places & written) or DOCUMENTS.fullmatch(below_repository) is not None

    @property
    def directory(self) -> str:
        """The working directory's name below the root on the pod."""
        return self.name(self.work)

    @property
    def pythonpath(self) -> list[str]:
        """Folders whose Python packages jobs may import: `src` of the repository."""
        source = self.repository / "src"
        staged = any(source in path.parents for path in self.sources)
        return [self.name(source)] if staged else []


def layout(
    snakefile: Path,
    work: Path,
    *,
    settings_files: Iterable[Path],
    inputs: Iterable[str],
    outputs: Iterable[str] = (),
    listed: Callable[[], Iterable[str]],
    stage: Iterable[str],
) -> Layout:
    """Find out what belongs to a workflow.

    Args:
        snakefile: the main one.
        work: the working directory.
        settings_files: the workflow's settings files.
        inputs: of the jobs, relative to the working directory; they widen the base.
        outputs: of the jobs; they widen it too.
        listed: returns the sources as Snakemake lists them, relative to the working directory;
            asked where git knows nothing.
        stage: paths that the user adds, relative to the repository.

    Raises:
        ValueError: if a path to be added does not exist, an input's path is absolute, or code
            would be missing.
    """
    if absolute := [name for name in inputs if Path(name).is_absolute()]:
        raise ValueError(
            f"the input {absolute[0]} has an absolute path, which a pod does not have: name it "
            "relative to the working directory"
        )
    folder = Path(os.path.realpath(snakefile)).parent
    repository, found = _tracked(folder)
    files = list(found)
    tracked = repository is not None
    repository = repository or folder
    work = Path(os.path.realpath(work))
    if not tracked:
        files = [Path(os.path.normpath(work / name)) for name in listed()]
    for name in stage:
        path = repository / name
        if not path.exists():
            raise ValueError(f"--runpod-stage {name}: {path} does not exist")
        files += _below(path)
    files += [_absolute(path) for path in settings_files]
    source = repository / "src"
    if source.is_dir() and not any(source in path.parents for path in files):
        raise ValueError(
            f"{source} would not be on the pods, since git does not track it: "
            "commit it, or set --runpod-stage src"
        )
    places = [repository, work, *files, *(work / name for name in (*inputs, *outputs))]
    base = Path(os.path.commonpath([_absolute(place) for place in places]))
    unique = tuple(dict.fromkeys(path for path in files if path.is_file() or path.is_symlink()))
    return Layout(base, repository, work, unique, tracked)


def staged(plan: Layout, extra: Iterable[str]) -> list[tuple[str, Path]]:
    """List what a job needs: the workflow's own files, and its inputs.

    Args:
        plan: of the workflow.
        extra: the job's inputs, and outputs that it brings up to date, relative to the working
            directory; folders with all that is in them.

    Returns:
        Names below the root on the pod, and paths here.

    Raises:
        ValueError: if an input has a link to a folder that would not be there, or to nothing.
    """
    found = {plan.name(path): path for path in plan.sources if not _leads_out(plan, path)}
    for each in extra:
        path = plan.work / each
        for file in _below(path):
            if _leads_out(plan, file):
                raise ValueError(
                    f"the input {each} has a link, {file.relative_to(plan.work)}, to "
                    f"{file.readlink()}, which would not be on the pod: put files in its place"
                )
            found[plan.name(file)] = file
    own = {name for name in found if OWN in f"/{name}"}  # the ledger's folder holds keys
    return sorted((name, path) for name, path in found.items() if name not in own)


def _leads_out(plan: Layout, path: Path) -> bool:
    """Tell whether a path is a link, to a folder or to nothing, that leads out of the base.

    A link to a file is staged as that file, wherever it lies.
    """
    if not path.is_symlink() or path.is_file():
        return False
    target = Path(os.path.normpath(path.parent / path.readlink()))
    return path.readlink().is_absolute() or plan.base not in (target, *target.parents)


@cache
def _tracked(folder: Path) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the git repository of a folder and its tracked files, or nothing."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel").strip()
        repository = Path(os.path.realpath(top))
        listed = _git(repository, "ls-files", "-z", "--recurse-submodules")
    except (OSError, subprocess.CalledProcessError):
        return None, ()
    names = [name for name in listed.split("\0") if name and not NEVER & set(name.split("/"))]
    return repository, tuple(repository / name for name in names)


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _below(path: Path) -> list[Path]:
    """Return a file, or the files below a folder."""
    if not path.is_dir():
        return [path] if path.exists() or path.is_symlink() else []
    return [
        file
        for file in sorted(path.rglob("*"))
        if not NEVER & set(file.relative_to(path).parts) and (file.is_file() or file.is_symlink())
    ]


def _absolute(path: Path) -> Path:
    """Return an absolute path without dots; unlike resolving, it keeps symbolic links."""
    return Path(os.path.normpath(Path.cwd() / path))
