"""Run many programs on all cores: a worker process for each slot, results in the order they are ready.

Goes in: keyed programs and limits. Comes out: `(key, ExecutionResult)`. What it looks after: a worker that dies or hangs is
replaced and costs one program at most; `sandbox_error` is retried on a fresh worker before it is reported. Nothing foreign
runs in this process or in a worker; see worker.py, zygote.py and judge.py for who holds what.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.channel import Channel, ChannelClosedError, pair
from mftcoder.execution.languages import prepare
from mftcoder.execution.reach import readable_paths
from mftcoder.execution.sandbox import LEVELS, ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain
from mftcoder.registry import did_you_mean

_ATTEMPTS = 3  # of a program whose sandbox failed
_GRACE = 20.0  # seconds past a program's own limits after which its worker is taken for lost


@dataclass
class _Job:
    key: str
    program: Program
    attempts: int = 0


class _Worker:
    """A worker process and the job it is on."""

    def __init__(self, level: str, scratch: Path, toolchains: Mapping[str, Toolchain]):
        scratch.mkdir(mode=0o711)
        here, there = pair()
        readable = readable_paths(*(path for toolchain in toolchains.values() for path in toolchain.readable))
        tools = {name: asdict(toolchain) for name, toolchain in toolchains.items()}
        settings = json.dumps({"level": level, "scratch": str(scratch), "readable": readable, "toolchains": tools})
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mftcoder.execution.worker", str(there.fileno()), settings],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.channel = Channel(here)
        self.job: _Job | None = None
        self.deadline = 0.0
        try:
            greeting = self.channel.receive()
        except ChannelClosedError:
            greeting = {"problem": f"the worker ended with exit code {self.process.wait()}"}
        if "problem" in greeting:
            self.close()
            raise ExecutionError(f"sandbox level '{level}' cannot be had here: {greeting['problem']}")
        self.covers: tuple[str, ...] = tuple(greeting["covers"])

    def start(self, job: _Job, limits: Limits) -> None:
        """Send a job; may raise ChannelClosedError."""
        job.attempts += 1
        self.job, self.deadline = job, time.monotonic() + limits.wall_seconds + limits.compile_wall_seconds + _GRACE
        record = {"key": job.key, "language": job.program.language, "files": dict(job.program.files)}
        self.channel.send({**record, "limits": asdict(limits)})

    def close(self) -> None:
        """Hang up and wait; kill if it does not end by itself."""
        self.channel.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """Workers at one level; a context manager that leaves no process and no file behind."""

    def __init__(self, level: str, workers: int | None = None, toolchains: Mapping[str, Toolchain] | None = None):
        if level not in LEVELS:
            raise ExecutionError(f"unknown sandbox level '{level}'.{did_you_mean(level, LEVELS)}")
        self.level = level
        self.toolchains = toolchains or {}
        self.size = workers or os.cpu_count() or 1
        self._folder = tempfile.TemporaryDirectory(prefix="mft-", ignore_cleanup_errors=True)
        Path(self._folder.name).chmod(0o711)
        self._selector = selectors.DefaultSelector()
        self._started = 0
        self._workers: list[_Worker] = []
        try:
            self.covers = self._add_worker().covers
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and remove their folders."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._selector.close()
        self._folder.cleanup()

    def run(self, programs: Iterable[tuple[str, Program]], limits: Limits) -> Iterator[tuple[str, ExecutionResult]]:
        """Results as they come; keys are the caller's and must differ."""
        waiting, again = iter(programs), deque[_Job]()
        while True:
            self._fill(waiting, again, limits)
            busy = [worker for worker in self._workers if worker.job]
            if not busy:
                return
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = {key.data for key, _ in self._selector.select(patience)}
            late = {worker for worker in busy if worker.deadline <= time.monotonic()}
            for worker in ready | late:
                finished = (
                    self._collect(worker) if worker in ready else self._give_up(worker, "timeout", "the run hung")
                )
                job, result = finished
                if result.status == "sandbox_error" and job.attempts < _ATTEMPTS:
                    again.append(job)
                else:
                    yield job.key, result

    def _fill(self, waiting: Iterator[tuple[str, Program]], again: deque[_Job], limits: Limits) -> None:
        """Give every free slot a job, and start workers while there are jobs for them."""
        while True:
            free = next((worker for worker in self._workers if not worker.job), None)
            if free is None and len(self._workers) >= self.size:
                return
            job = again.popleft() if again else next((_Job(*item) for item in waiting), None)
            if job is None:
                return
            worker = free or self._add_worker()
            try:
                worker.start(job, limits)
            except ChannelClosedError:
                self._replace(worker)
                again.append(job)

    def _collect(self, worker: _Worker) -> tuple[_Job, ExecutionResult]:
        try:
            message = worker.channel.receive()
        except ChannelClosedError:
            return self._give_up(worker, "sandbox_error", "the worker ended")
        assert worker.job is not None
        job, worker.job = worker.job, None
        return job, ExecutionResult.from_record(message["result"])

    def _give_up(self, worker: _Worker, status: str, reason: str) -> tuple[_Job, ExecutionResult]:
        assert worker.job is not None
        job = worker.job
        self._replace(worker)
        return job, ExecutionResult(status, stderr=reason)  # type: ignore[arg-type]

    def _replace(self, worker: _Worker) -> None:
        self._selector.unregister(worker.channel.socket)
        worker.process.kill()
        worker.close()
        self._workers.remove(worker)

    def _add_worker(self) -> _Worker:
        self._started += 1
        worker = _Worker(self.level, Path(self._folder.name, str(self._started)), self.toolchains)
        self._workers.append(worker)
        self._selector.register(worker.channel.socket, selectors.EVENT_READ, worker)
        return worker


def open_pool(level: str = "auto", workers: int | None = None, languages: Iterable[str] = ("python",)) -> Pool:
    """A pool for these languages at `level`, or at the strongest level this machine can hold.

    ExecutionError if there is none, or a toolchain is missing.
    """
    toolchains = {name: prepare(name) for name in sorted(set(languages) - {"python"})}
    if level != "auto":
        return Pool(level, workers, toolchains)
    problems: list[str] = []
    for candidate in LEVELS:
        try:
            return Pool(candidate, workers, toolchains)
        except ExecutionError as error:
            problems += error.problems
    raise ExecutionError(*problems)
