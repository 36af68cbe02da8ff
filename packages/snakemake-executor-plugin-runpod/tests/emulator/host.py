"""Starts the processes of pods, and kills them."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from emulator import pod as program
from emulator.proxy import KINDS, Proxy
from emulator.state import GPUS, Account, Pod, Store

Entry = tuple[Account, Pod, Any, Connection]


class Host:
    """Has every pod as a process of its own, forked from one that has imported everything.

    Attributes:
        boot_s: seconds from the creation of a pod to the start of its container.
    """

    def __init__(self, store: Store, folder: Path, url: str, *, boot_s: float = 0.2) -> None:
        self.store, self.folder, self.url = store, folder, url
        self.boot_s = boot_s
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["emulator.pod"])
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        store.boot = lambda account, pod: threading.Thread(
            target=self.boot, args=(account, pod), daemon=True
        ).start()
        store.kill = self.kill
        threading.Thread(target=self._listen, daemon=True).start()

    def boot(self, account: Account, pod: Pod) -> None:
        """Start the container of a pod, after a while."""
        late = pod.has("late-sshd")
        time.sleep(self.boot_s)
        if pod.ended is not None:
            return
        pod.born = self.store.clock()
        if late:
            time.sleep(late.value)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=program.run, args=(self._config(pod), theirs))
        with self._lock:
            if pod.ended is not None:
                return
            process.start()
            self._entries[pod.id] = (account, pod, process, ours)
        theirs.close()

    def kill(self, pod: Pod) -> None:
        """Kill a pod and all that runs in it."""
        with self._lock:
            entry = self._entries.pop(pod.id, None)
        if entry is None:
            return
        _, _, process, pipe = entry
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)  # nothing new may start meanwhile
        program.kill_below(process.pid)
        process.kill()
        process.join()
        pipe.close()
        shutil.rmtree(self.folder / pod.id, ignore_errors=True)

    def close(self) -> None:
        """Kill every pod."""
        with self._lock:
            pods = [pod for _, pod, _, _ in self._entries.values()]
        for pod in pods:
            pod.ended = pod.ended or self.store.clock()
            self.kill(pod)

    def _config(self, pod: Pod) -> dict[str, Any]:
        spec, folder = pod.spec, self.folder / pod.id
        shown, slow = pod.has("gpu"), pod.has("slow-network")
        gpus = shown.value if shown else [[spec["gpu"], GPUS[spec["gpu"]][0] * 1024]] * spec["gpus"]
        cuda, disk = pod.has("cuda"), pod.has("disk")
        program.tools(
            folder / "bin",
            gpus,
            cuda.value if cuda else "13.4",
            disk.value if disk else spec["disk"],
        )
        env = {
            "HOME": str(folder / "root"),
            "PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LD_LIBRARY_PATH": str(folder / "lib"),
            "LANG": "C.UTF-8",
            "USER": "root",
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_DC_ID": "EU-RO-1",
            "RUNPOD_GPU_COUNT": str(spec["gpus"]),
            "RUNPOD_MEM_GB": "64",
            "RUNPOD_API_KEY": pod.secret,
            "RUNPOD_API_BASE_URL": self.url,
            "SNAKEMAKE_RUNPOD_ENVIRONMENT": sys.prefix,
            "SNAKEMAKE_RUNPOD_CGROUP": str(folder / "cgroup"),
        }
        (folder / "cgroup").mkdir()
        (folder / "cgroup/memory.events").write_text("oom 0\noom_kill 0\n")
        if pod.has("bare"):
            del env["SNAKEMAKE_RUNPOD_ENVIRONMENT"]
        if pod.has("stranger"):
            spec["env"] = spec["env"] | {"SNAKEMAKE_RUNPOD_POD": "snakemake-of-someone-else"}
        if slow:
            env["SLOW_NETWORK"] = str(slow.value)
        return {
            "home": str(folder / "root"),
            "env": env | spec["env"],
            "start": spec["start"],
            "faults": [vars(fault) for fault in pod.faults],
        }

    def _listen(self) -> None:
        """Hear what pods say of themselves."""
        while True:
            with self._lock:
                pipes = {entry[3]: entry for entry in self._entries.values()}
            if not pipes:
                time.sleep(0.01)
                continue
            for pipe in wait(list(pipes), timeout=0.02):
                with suppress(EOFError, OSError):
                    self._hear(*pipes[pipe][:2], *pipe.recv())  # type: ignore[union-attr]

    def _hear(self, account: Account, pod: Pod, what: str, value: Any) -> None:
        if what == "port":
            fault = next((fault for fault in pod.faults if fault.kind in KINDS), None)
            strike = partial(self._hear, account, pod, "fired", fault.kind) if fault else None
            pod.port = Proxy(value, fault, strike).port if fault else value
        elif what == "fired":
            fault = next(f for f in account.faults if f.on == "pod" and f.kind == value)
            fault.fired += 1
        elif what == "died":
            with suppress(Exception):
                self.store.terminate(account, pod.id)
