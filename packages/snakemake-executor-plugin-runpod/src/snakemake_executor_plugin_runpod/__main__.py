"""The command `python -m snakemake_executor_plugin_runpod`: the pods of a working directory.

It reads the ledger, and asks RunPod's API where that is of use. A run that is under way is not
disturbed; only `reap` changes anything.
"""

import asyncio
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from snakemake_executor_plugin_runpod.api.errors import ApiError, printable
from snakemake_executor_plugin_runpod.api.model import PodApi
from snakemake_executor_plugin_runpod.api.open import find_key, open_api
from snakemake_executor_plugin_runpod.api.retry import insist
from snakemake_executor_plugin_runpod.commands import rows as views
from snakemake_executor_plugin_runpod.commands.doctor import ask, examine
from snakemake_executor_plugin_runpod.commands.text import table
from snakemake_executor_plugin_runpod.ledger import FOLDER, Ledger
from snakemake_executor_plugin_runpod.limits import limits

WATCH_S = 2.0
CLEAR = "\x1b[2J\x1b[H"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Directory = Annotated[Path, typer.Option(help="The working directory of the run.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON value.")]
Transport = Annotated[str, typer.Option(help="auto, sdk or rest-v2, as --runpod-api.")]
Name = Annotated[str, typer.Argument(help="A pod's id or name, or part of a job's name.")]


@app.callback()
def main() -> None:
    """Pods that Snakemake has rented from RunPod: what they do, what they cost, how to end them."""


@app.command("list")
def list_pods(
    directory: Directory = Path(), api: Transport = "auto", as_json: AsJson = False
) -> None:
    """List the pods that may be alive: what the ledger says against what RunPod says."""
    ledger, seen = _ledger(directory), None
    if find_key():
        service = open_api(api)
        ask(service, ledger)
        seen = insist(service.pods)
    found = views.pods(ledger, seen)
    if seen is None:
        typer.echo("RUNPOD_API_KEY is not set: this is the ledger alone", err=True)
    _print(found, as_json, "no pod is alive" if seen is not None else "the ledger has no open pod")


@app.command()
def status(directory: Directory = Path(), watch: bool = False, as_json: AsJson = False) -> None:
    """Say of every job how far it is, on which pod, and what it has cost so far."""
    while True:
        ledger = _ledger(directory)
        found = views.jobs(ledger, directory)
        if watch and sys.stdout.isatty():
            typer.echo(CLEAR, nl=False)
        _print(found, as_json, "no job of this folder has had a pod")
        if found and not as_json:
            typer.echo(f"  total ${sum(job['dollars'] for job in found):.4f}, an estimate")
        if not watch or as_json or not any(job["alive"] for job in found):
            return
        time.sleep(WATCH_S)


@app.command()
def logs(name: Name, directory: Directory = Path(), follow: bool = False) -> None:
    """Print what a job printed on its pod; the copy that is here, so far as it has come."""
    lease = views.find(_ledger(directory), name)
    path = directory / FOLDER / "logs" / f"{lease.name}.log"
    if not path.exists() and not follow:
        raise ValueError(f"{lease.title} has printed nothing yet on pod {lease.id}")
    at, rest = 0, b""
    while True:
        if path.exists():
            *lines, rest = path.read_bytes().split(b"\n")
            for line in lines[at if at <= len(lines) else 0 :]:
                typer.echo(printable(line.decode(errors="replace")))
            at = len(lines)
        if not follow or not _ledger(directory).leases[lease.name].open:
            typer.echo(printable(rest.decode(errors="replace")), nl=False)
            return
        time.sleep(WATCH_S / 4)


@app.command()
def ssh(
    name: Name,
    directory: Directory = Path(),
    api: Transport = "auto",
    show: Annotated[bool, typer.Option("--print", help="Print the command instead.")] = False,
) -> None:
    """Log in to a pod, with the key of this folder.

    Only the host key that the run saw is accepted, once it has seen one.
    """
    lease = views.find(_ledger(directory), name)
    view = insist(open_api(api).pod, lease.id) if lease.id else None
    if view is None or view.endpoint is None:
        raise ValueError(f"pod {lease.id or lease.name} of {lease.title} has no port for SSH now")
    folder = (directory / FOLDER).absolute()
    host = f"[{view.endpoint.host}]:{view.endpoint.port}"
    if not show and not shutil.which("ssh"):
        raise ValueError("there is no ssh here: install openssh-client, or see --print")
    words = ["ssh", "-i", str(folder / "id_ed25519"), "-o", "IdentitiesOnly=yes"]
    if lease.host_key:
        known = folder / f"known_hosts.{lease.name}"
        known.write_text(f"{host} {lease.host_key}\n")
        words += ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"]
    words += ["-p", str(view.endpoint.port), f"{view.endpoint.user}@{view.endpoint.host}"]
    if show:
        typer.echo(shlex.join(words))
    else:
        os.execvp(words[0], words)


@app.command()
def offers(api: Transport = "auto", as_json: AsJson = False) -> None:
    """List kinds of GPU and their prices in dollars an hour: those of now if there is a key."""
    from snakemake_executor_plugin_runpod.renting.offers import price_list

    month, listed = price_list()
    if find_key():
        listed = insist(open_api(api).offers)
    else:
        typer.echo(f"RUNPOD_API_KEY is not set: these are the prices of {month}", err=True)
    _print(views.offers(listed), as_json, "RunPod offers nothing")


@app.command()
def reap(
    directory: Directory = Path(),
    api: Transport = "auto",
    everything: Annotated[bool, typer.Option("--all", help="Those of other folders, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    forget: Annotated[
        str, typer.Option(metavar="POD", help="Only note that this pod is gone: you have seen it.")
    ] = "",
) -> None:
    """End every pod that a run has left behind, and wait until it is proven."""
    if forget:
        return _forget(_ledger(directory), forget)
    service, ledger = open_api(api), _ledger(directory)
    if holder := ledger.claim():
        raise ValueError(f"the pods of this folder are in use by {holder}: interrupt that run")
    ask(service, ledger)
    found = views.pods(ledger, insist(service.pods))
    foreign = [pod for pod in found if pod["state"] == "of another account"]
    others = [pod for pod in found if pod["state"] == "of another folder"]
    found = [pod for pod in found if pod not in foreign and (everything or pod not in others)]
    if found:
        _print(found, False, "")
        if not yes:
            typer.confirm(f"End {len(found)} pods?", abort=True)
        if left := asyncio.run(_end(service, ledger, found)):
            typer.echo(f"may still be alive, or turn up: {', '.join(left)}; reap again", err=True)
            raise typer.Exit(1)
    if foreign:
        names = ", ".join(str(pod["pod"] or pod["name"]) for pod in foreign)
        typer.echo(f"rented with another API key, which alone can end them: {names}", err=True)
        raise typer.Exit(1)
    if others and not everything:
        typer.echo(f"no pod of this folder is alive; of other folders {len(others)} are: see --all")
        return None
    typer.echo(f"no pod is alive{' any more' if found else ''}")
    return None


@app.command()
def doctor(directory: Directory = Path(), api: Transport = "auto") -> None:
    """Check what renting needs; every fault comes with its fix."""
    findings = list(examine(directory, api))
    for finding in findings:
        mark = "ok   " if finding.good else "FAULT"
        typer.echo(f"{mark} {finding.what}: {finding.said}")
        if not finding.good:
            typer.echo(f"      {finding.fix}")
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


async def _end(service: PodApi, ledger: Ledger, found: list[dict[str, Any]]) -> list[str]:
    """End pods; return those of which it is not proven."""
    from snakemake_executor_plugin_runpod.renting.fleet import Fleet

    fleet = Fleet(service, ledger, limits(), typer.echo)
    left = []
    for pod in found:
        lease, proven = ledger.leases.get(pod["name"]), False
        try:
            if lease is not None and lease.open:
                proven = await fleet.end(lease) and not lease.open
            if pod["pod"] and not proven:
                await fleet.end_extra(pod["pod"])
                proven = await fleet.is_gone(pod["pod"])
        except ApiError as error:
            typer.echo(f"pod {pod['pod'] or pod['name']}: {error}", err=True)
        if not proven:
            left.append(str(pod["pod"] or pod["name"]))
    await fleet.settle()
    return left


def _forget(ledger: Ledger, word: str) -> None:
    """Believe a person that a pod is gone."""
    lease = views.find(ledger, word)
    if holder := ledger.claim():
        raise ValueError(f"the pods of this folder are in use by {holder}: interrupt that run")
    ledger.write("gone", lease.name)
    typer.echo(f"pod {lease.id or lease.name} of {lease.title} counts as gone, by your word")


def _ledger(directory: Path) -> Ledger:
    if not directory.is_dir():
        raise ValueError(f"--directory {directory}: no such folder")
    return Ledger(directory / FOLDER)


def _print(rows: list[dict[str, Any]], as_json: bool, otherwise: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif rows:
        typer.echo("\n".join(table(views.cells(rows), numbers=0)))
    else:
        typer.echo(otherwise)


def run() -> None:
    """Run a command; an error is one line."""
    try:
        app(prog_name="python -m snakemake_executor_plugin_runpod")
    except (ValueError, OSError, ApiError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run()
