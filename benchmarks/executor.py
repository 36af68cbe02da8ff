"""What the executor for RunPod costs beside plain means, against the emulator on this machine.

    python benchmarks/executor.py

Prints: staging of many small files and of a large one, beside scp over the same server; fetching of
ten thousand small files, and the results of a job that prints a gigabyte; the time of
a run whose one job goes to a pod, beside the same run here; the time to import the plugin, beside
Snakemake's own; and listings of pods a minute with fifty pods.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "packages/snakemake-executor-plugin-runpod/tests")]

from emulator.client import Account, Emulator  # noqa: E402
from rig import Project  # noqa: E402

from snakemake_executor_plugin_runpod.api.model import Endpoint, Spec  # noqa: E402
from snakemake_executor_plugin_runpod.api.open import open_api  # noqa: E402
from snakemake_executor_plugin_runpod.digests import Digests, item  # noqa: E402
from snakemake_executor_plugin_runpod.ledger import Ledger  # noqa: E402
from snakemake_executor_plugin_runpod.limits import Limits  # noqa: E402
from snakemake_executor_plugin_runpod.remote.link import Identity, Link  # noqa: E402
from snakemake_executor_plugin_runpod.remote.transfer import Fetch, read_manifest, upload  # noqa: E402
from snakemake_executor_plugin_runpod.renting.fleet import Fleet  # noqa: E402

SMALL, SMALL_BYTES, LARGE_BYTES = 1000, 4096, 200_000_000
MANY, CONSOLE_BYTES = 10_000, 1_000_000_000
PODS, WATCHED_S = 50, 30
REPEATS = 5


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def spec(name: str, folder: Path) -> Spec:
    """Describe a pod that can be logged in to with the key of a folder."""
    key = {"PUBLIC_KEY": Identity.of_project(folder / "key").public()}
    return Spec(name, "runpod/base:1", "NVIDIA L4", 1, "secure", 20, 4, None, "12.8", None, "", key)


def endpoint(name: str, folder: Path) -> Endpoint:
    """Create a pod, and wait until it has a port for SSH."""
    api = open_api("rest-v2")
    id = api.create(spec(name, folder))  # noqa: A001
    while not (view := api.pod(id)) or not view.endpoint:
        time.sleep(0.05)
    return view.endpoint


def staging(folder: Path) -> None:
    """Send files by the plugin and by scp, to the same server."""
    identity = Identity.of_project(folder / "key")
    for label, sizes in (
        (f"{SMALL} files of {SMALL_BYTES // 1024} kB", [SMALL_BYTES] * SMALL),
        (f"one file of {LARGE_BYTES / 1e6:.0f} MB", [LARGE_BYTES]),
    ):
        there = endpoint(f"bench-{len(sizes)}", folder)
        source = folder / f"files-{len(sizes)}"
        source.mkdir()
        for number, size in enumerate(sizes):
            (source / f"{number:04d}").write_bytes(os.urandom(size))
        paths = sorted(source.iterdir())
        link = Link(there, identity, Limits())

        async def send(link: Link = link, paths: list[Path] = paths) -> None:
            digests = Digests()
            items = [item(path.name, path, digests) for path in paths]
            await upload(link, "bench", items, Limits())
            await link.close()

        ours = seconds(lambda: asyncio.run(send()))
        words = ["scp", "-O", "-q", "-i", str(identity.path), "-P", str(there.port)]
        words += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        words += [*map(str, paths), f"root@{there.host}:/"]
        plain = seconds(lambda: subprocess.run(words, check=True))  # noqa: B023
        print(
            f"staging {label}: {ours:.2f} s with sha256 on both sides, scp {plain:.2f} s: "
            f"{ours / plain:.2f} of it"
        )


def on_a_pod(folder: Path, name: str, command: str, product: str) -> tuple[float, float, int]:
    """Run a command on a pod as a job; return seconds to fetch its product and to hear it out."""
    link = Link(endpoint(name, folder), Identity.of_project(folder / "key"), Limits())
    job = {"job": name}
    spec = {"command": command, "directory": ".", "pythonpath": [], "requirements": "x", **job}
    spec |= {"snakemake": version("snakemake"), "limit_s": 600, "variables": {}, "secrets": {}}

    async def run() -> tuple[float, float, int]:
        await link.ask("start", spec)
        offset, heard = 0, 0
        while True:
            state = await link.ask("poll", {"offset": offset, **job})
            offset, heard = state["offset"], heard + len(state["log"])
            if state["phase"] in ("done", "failed"):
                break
            await asyncio.sleep(0.2)
        assert state.get("code") == 0, state
        begun = time.perf_counter()
        answer = await link.ask("manifest", {"products": [product], **job}, patience=600)
        fetch = Fetch(link, name, "bench", Limits(), Digests())
        await fetch(read_manifest(answer, [product]))
        fetched = time.perf_counter()
        while state["more"]:
            state = await link.ask("poll", {"offset": offset, **job})
            offset, heard = state["offset"], heard + len(state["log"])
        await link.close()
        return fetched - begun, time.perf_counter() - fetched, heard

    return asyncio.run(run())


def fetching(folder: Path) -> None:
    """Fetch a folder of many files, and the product of a job that prints without end."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        make = f"mkdir out; for i in $(seq {MANY}); do echo $i > out/$i; done"
        took, _, _ = on_a_pod(folder, "many-files", make, "out")
        print(f"fetching a folder of {MANY} small files: {took:.1f} s")
        chatter = f"head -c {CONSOLE_BYTES} /dev/zero | tr '\\0' x | fold -w 99; echo 1 > one"
        took, after, heard = on_a_pod(folder, "chatter", chatter, "one")
        print(
            f"a job that prints {CONSOLE_BYTES / 1e9:.0f} GB: its product is here after "
            f"{took:.2f} s, what is kept of its console ({heard / 1e6:.1f} MB) {after:.1f} s later"
        )
    finally:
        os.chdir(before)


def job(emulator: Emulator, folder: Path) -> None:
    """Run the project of three rules on a pod, and here."""
    project = Project(folder / "project", emulator)
    there = min(seconds(lambda: again(project)) for _ in range(2))
    here = min(seconds(lambda: again(project, "--executor", "local")) for _ in range(2))
    print(
        f"one job: {there:.1f} s on an emulated pod, {here:.1f} s here: {there - here:.1f} s more"
    )


def again(project: Project, *words: str) -> None:
    for made in ("counts", "report.json", "texts"):
        shutil.rmtree(project.folder / made, ignore_errors=True)
        (project.folder / made).unlink(missing_ok=True)
    said = project(*words)
    assert said.code == 0, said.text


def imports() -> None:
    """Import the plugin beside Snakemake, which imports it at every start."""
    best = {
        code: min(
            seconds(lambda: subprocess.run([sys.executable, "-c", f"import {code}"], check=True))  # noqa: B023
            for _ in range(REPEATS)
        )
        for code in ("sys", "snakemake.cli", "snakemake.cli, snakemake_executor_plugin_runpod")
    }
    nothing, alone, both = best.values()
    print(
        f"import: Snakemake {alone - nothing:.2f} s, with the plugin {both - nothing:.2f} s: "
        f"{1000 * (both - alone):.0f} ms more"
    )


def listings(account: Account, folder: Path) -> None:
    """Watch fifty pods as their jobs do, and count what the service is asked."""
    api = open_api("rest-v2")
    fleet = Fleet(api, Ledger(folder / "ledger"), Limits(), print)
    for number in range(PODS):
        api.create(spec(f"many-{number}", folder))
    ids = [view.id for view in api.pods() if view.name.startswith("many-")]
    before = dict(account.calls)

    async def wait(id: str) -> None:  # noqa: A002
        end = time.monotonic() + WATCHED_S
        while time.monotonic() < end:
            assert await fleet.find(id)
            await asyncio.sleep(fleet.limits.list_every)

    async def watch() -> None:
        await asyncio.gather(*map(wait, ids))

    asyncio.run(watch())
    after = account.calls
    asked = {name: after[name] - before.get(name, 0) for name in after}
    minute = {name: round(count * 60 / WATCHED_S) for name, count in asked.items() if count}
    print(f"{PODS} pods that boot: {json.dumps(minute)} calls of the API a minute")
    account.change(terminate=ids)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emulator = Emulator(folder / "pods")
        try:
            account = emulator.account("benchmark")
            os.environ |= account.environment()
            imports()
            staging(folder)
            fetching(folder)
            listings(account, folder)
            account.change(terminate=[pod["id"] for pod in account.alive])
            job(emulator, folder)
        finally:
            emulator.close()


if __name__ == "__main__":
    main()
