"""What Snakemake sees of this package: it hands over jobs, and hears how they ended."""

import asyncio
import atexit
import signal
import threading
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface
from snakemake_interface_executor_plugins.workflow import WorkflowExecutorInterface

from snakemake_executor_plugin_runpod.failures import JobError
from snakemake_executor_plugin_runpod.limits import limits

LEAST_POLL_S = 0.2


class Executor(RemoteExecutor):
    """Runs each job, or group of jobs, on a pod of its own.

    Snakemake calls from its main thread; everything that waits happens in the event loop of the
    thread in which Snakemake asks for the state of jobs.
    """

    def __init__(
        self, workflow: WorkflowExecutorInterface, logger: LoggerExecutorInterface
    ) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._wake: asyncio.Event | None = None
        self._session: Any = None
        self._jobs: dict[int, asyncio.Task[None]] = {}
        self._closed = self._interrupted = False
        super().__init__(workflow, logger)

    def __post_init__(self) -> None:
        from snakemake_executor_plugin_runpod.run.session import Session

        try:
            self._ready.wait()
            self._session = Session(self.workflow, self._say, self._poll_s)
            atexit.register(self._session.farewell)  # also if this run is refused
            self._in_loop(self._session.start())
        except ValueError as error:
            self.wait = False
            raise WorkflowError(str(error)) from None
        except BaseException:
            self.wait = False
            raise
        if threading.current_thread() is threading.main_thread():
            hang_up = signal.getsignal(signal.SIGHUP)
            if hang_up is signal.SIG_DFL:  # a closed terminal is an interrupt, not a death
                signal.signal(signal.SIGHUP, signal.default_int_handler)

    @property
    def cores(self) -> str:
        """All of the pod's: the controller's cores are none of its business."""
        return "all"

    @property
    def _poll_s(self) -> float:
        asked = self.workflow.remote_execution_settings.seconds_between_status_checks
        return max(LEAST_POLL_S, float(asked))

    def additional_general_args(self) -> str:
        """Run in the folder that the job's files are staged for, and say little.

        Snakemake's own annotation says that this is a list; it must be a string.
        """
        return "--directory . --workflow-profile none --quiet rules progress host"

    def get_python_executable(self) -> str:
        """Return the Python of the pod's environment, which is on its PATH."""
        return "python"

    def run_job(self, job: JobExecutorInterface) -> None:
        """Take a job over; one that cannot run on a pod fails, and no other one with it."""
        try:
            task = self._session.task(job, self.format_job_exec(job), self.envvars())
            info = SubmittedJobInfo(job, external_jobid=task.key, aux={"task": task})
        except ValueError as error:
            info = SubmittedJobInfo(job, aux={"refused": str(error)})
        self.report_job_submission(info)
        self._nudge()

    async def check_active_jobs(  # type: ignore[override] # Snakemake's annotation is not its use
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Begin jobs that are new, report those that have ended, and hand back the others."""
        if self._loop is None:
            self._wake = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self._ready.set()
        for info in active_jobs:
            aux = info.aux or {}
            running = aux.get("running")
            if refused := aux.get("refused"):
                self.report_job_error(info, msg=f"{refused}\n")
                continue
            if running is None:
                try:
                    await self._session.ready(info.job)
                except ValueError as error:
                    self.report_job_error(info, msg=f"{error}\n")
                    continue
                running = aux["running"] = self._session.engine.submit(aux["task"])
                self._jobs[id(info)] = running
            if not running.done():
                yield info
                continue
            del self._jobs[id(info)]
            self._report(info, running)

    def _report(self, info: SubmittedJobInfo, running: "asyncio.Task[None]") -> None:
        if running.cancelled():
            self.report_job_error(info, msg="it was interrupted. ")
            return
        error = running.exception()
        if error is None:
            self.report_job_success(info)
            self._session.succeeded.add(info.external_jobid)
        elif isinstance(error, JobError):
            self.report_job_error(info, msg=f"{error}\n")
        else:
            self.report_job_error(info, msg=f"{type(error).__name__}: {error}\n")

    async def sleep(self) -> None:
        """Wait until a job has ended, one is new, or it is time to look."""
        assert self._wake is not None
        waker = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait(
            {waker, *self._jobs.values()},
            timeout=self._poll_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        waker.cancel()
        self._wake.clear()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """End all jobs: the user has interrupted the run, or something has failed."""
        if self._session is None or self._closed:
            return
        self._interrupted = True
        detach = self._session.settings.on_interrupt == "detach"
        self._say("interrupted: " + ("the pods work on" if detach else "ending all pods"))
        try:
            self._in_loop(self._session.halt(detach), limits().interrupted)
        except TimeoutError:
            self._say("not all pods could be ended in time")

    def shutdown(self) -> None:
        """End what is left, and say what it cost.

        Raises:
            WorkflowError: if a pod may be alive: then this run has not succeeded.
        """
        left = ""
        if not self._closed and self._session is not None:
            self._closed = True
            if self.wait_thread.is_alive():
                self._in_loop(self._session.close())
            else:
                self._session.end_without_loop()
            self._session.report()
            left = "" if self._interrupted else self._session.left()
        self.wait = False
        self._nudge()
        super().shutdown()  # type: ignore[no-untyped-call]
        if left:
            raise WorkflowError(f"pods may be alive, and are billed: {left}")

    def _in_loop(self, work: Coroutine[Any, Any, None], patience: float | None = None) -> None:
        """Do something in the event loop, and wait for it."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        end = time.monotonic() + patience if patience else None
        while not future.done():
            if end and time.monotonic() > end:
                raise TimeoutError
            if not self.wait_thread.is_alive():
                raise WorkflowError("the thread that watches over the jobs has ended")
            time.sleep(0.02)  # a wait that a second interrupt can break
        future.result()

    def _nudge(self) -> None:
        if self._loop is not None and self._wake is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def _say(self, text: str) -> None:
        self.logger.info(f"runpod: {text}")
