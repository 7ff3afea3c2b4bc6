"""Run many programs on all cores: one worker process per slot, results in the order in which they are ready.

A worker that dies or hangs is replaced, and costs one program at most. A program whose sandbox failed runs again at the end, alone
and on fresh workers. If it fails again, its tests run with an empty answer: the answer failed if that works, and the result is
`sandbox_error` if it does not. Untrusted code runs neither in this process nor in a worker, but in children of zygote.py.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mftcoder.errors import ExecutionError
from mftcoder.execution.bounds import OUT_OF_TIME
from mftcoder.execution.channel import Channel, ChannelClosedError, pair
from mftcoder.execution.isolation.confinement import readable_paths
from mftcoder.execution.isolation.scratch import lock, remove_tree, remove_unlocked
from mftcoder.execution.languages import prepare
from mftcoder.execution.sandbox import LEVELS, ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain
from mftcoder.registry import did_you_mean

MAX_ANSWER_CHARS = 1 << 20
"""A longer answer fails without being run: no solution is that long, and whatever reads an answer must be bounded."""

_PREFIX = "mft-pool-"  # of a pool's folder, in the system's folder for temporary files
_ATTEMPTS_ALONE = 2  # to run a program alone, after its sandbox failed beside others
_ATTEMPTS_TO_START = 5  # to start a worker while no other one runs
_PAUSE = 0.5  # seconds between those attempts
_RUNS = 4  # of one program at most: it may run again without a script, and with changed tests
_SETTLED = 60.0  # seconds after which a pool has certainly locked its folder
_GRACE = 20.0  # seconds beyond a program's limits after which its worker counts as hung


@dataclass
class _Job:
    key: str
    program: Program


class _Worker:
    """A worker process and its current job."""

    def __init__(self, level: str, scratch: Path, toolchains: Mapping[str, Toolchain]):
        scratch.mkdir(mode=0o711)
        ours, theirs = pair()
        readable = readable_paths(*(path for toolchain in toolchains.values() for path in toolchain.readable))
        tools = {name: asdict(toolchain) for name, toolchain in toolchains.items()}
        settings = json.dumps({"level": level, "scratch": str(scratch), "readable": readable, "toolchains": tools})
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mftcoder.execution.worker", str(theirs.fileno()), settings],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.channel = Channel(ours)
        self.job: _Job | None = None
        self.deadline = 0.0
        try:
            greeting = self.channel.receive()
        except ChannelClosedError:
            greeting = {"problem": f"the worker ended with exit code {self.process.wait()}"}
        if "problem" in greeting:
            self.close()
            raise ExecutionError(f"sandbox level '{level}' is not available on this machine: {greeting['problem']}")
        self.covers: tuple[str, ...] = tuple(greeting["covers"])

    def start(self, job: _Job, limits: Limits) -> None:
        """Send a job; ChannelClosedError if the worker ended."""
        compiling = 0.0 if job.program.language == "python" else limits.compile_wall_seconds
        self.job, self.deadline = job, time.monotonic() + _RUNS * limits.wall_seconds + compiling + _GRACE
        record = {"key": job.key, "language": job.program.language, "files": dict(job.program.files)}
        self.channel.send({**record, "limits": asdict(limits)})

    def exit_code(self) -> int | None:
        """Exit code of a worker that closed its channel; None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=5)
        return None

    def close(self) -> None:
        """Close the channel and wait for the worker's end; kill it if it does not end by itself."""
        self.channel.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Pool:
    """Workers at one sandbox level; a context manager that leaves no process and no file behind."""

    def __init__(self, level: str, workers: int | None = None, toolchains: Mapping[str, Toolchain] | None = None):
        if level not in LEVELS:
            raise ExecutionError(f"unknown sandbox level '{level}'.{did_you_mean(level, LEVELS)}")
        self.level = level
        self.toolchains = toolchains or {}
        self.size = workers or os.cpu_count() or 1
        self.folder, self._lock = _new_folder()
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
        """End the workers and remove the pool's folder."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._selector.close()
        with contextlib.suppress(FileNotFoundError):  # the last worker to end may have removed it
            remove_tree(self.folder)
        os.close(self._lock)

    def run(self, programs: Iterable[tuple[str, Program]], limits: Limits) -> Iterator[tuple[str, ExecutionResult]]:
        """Yield `(key, result)` in the order in which programs finish. The caller's keys must be unique."""
        try:
            yield from self._run(programs, limits)
        finally:  # after an interrupt a busy worker would give its result to the next run
            for worker in [worker for worker in self._workers if worker.job]:
                self._replace(worker)

    def _run(self, programs: Iterable[tuple[str, Program]], limits: Limits) -> Iterator[tuple[str, ExecutionResult]]:
        suspects: list[_Job] = []
        for job, result in self._run_beside_others((_Job(*item) for item in programs), limits):
            if result.status == "sandbox_error":
                suspects.append(job)
            else:
                yield job.key, result
        for job in suspects:
            yield job.key, self._run_alone(job.program, limits)

    def _run_alone(self, program: Program, limits: Limits) -> ExecutionResult:
        """Run a program whose sandbox failed, with no other beside it. An answer that breaks its sandbox each time has failed."""
        for _ in range(_ATTEMPTS_ALONE):
            result = self._run_on_fresh_worker(program, limits)
            if result.status != "sandbox_error":
                return result
        empty = replace(program, files={**program.files, "candidate": ""})
        if self._run_on_fresh_worker(empty, limits).status == "sandbox_error":
            return result
        reason = "the sandbox failed each time with this answer, and works without it"
        return ExecutionResult("failed", stderr=f"{reason}: {result.stderr}")

    def _run_on_fresh_worker(self, program: Program, limits: Limits) -> ExecutionResult:
        for worker in list(self._workers):
            self._replace(worker)
        [(_, result)] = self._run_beside_others(iter([_Job("", program)]), limits)
        return result

    def _run_beside_others(self, jobs: Iterator[_Job], limits: Limits) -> Iterator[tuple[_Job, ExecutionResult]]:
        waiting = deque[_Job]()  # jobs that were taken from `jobs` but not started
        while True:
            yield from self._fill(jobs, waiting, limits)
            busy = [worker for worker in self._workers if worker.job]
            if not busy:
                return
            patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            ready = {key.data for key, _ in self._selector.select(patience)}
            for worker in ready:
                if worker.job:
                    yield self._collect(worker)
                else:  # an idle worker ended
                    self._replace(worker)
            for worker in busy:
                if worker.job and worker not in ready and worker.deadline <= time.monotonic():
                    yield self._give_up(worker, "timeout", "the run hung")

    def _fill(
        self, jobs: Iterator[_Job], waiting: deque[_Job], limits: Limits
    ) -> Iterator[tuple[_Job, ExecutionResult]]:
        """Give every free slot a job, and start workers while there are jobs for them. Yield results of jobs that cannot run."""
        while any(not worker.job for worker in self._workers) or len(self._workers) < self.size:
            job = waiting.popleft() if waiting else next(jobs, None)
            if job is None:
                return
            if len(job.program.files.get("candidate", "")) > MAX_ANSWER_CHARS:
                yield job, ExecutionResult("failed", stderr=f"the answer is longer than {MAX_ANSWER_CHARS} characters")
                continue
            worker = self._free_worker()
            if worker is None:
                waiting.append(job)
                return
            try:
                worker.start(job, limits)
            except ChannelClosedError:
                yield self._give_up(worker, "sandbox_error", "the worker ended")

    def _free_worker(self) -> _Worker | None:
        """A worker without a job, started if needed; None if a start fails while other workers run, since they may cause that."""
        for attempt in range(_ATTEMPTS_TO_START):
            try:
                return next((worker for worker in self._workers if not worker.job), None) or self._add_worker()
            except ExecutionError:
                if any(worker.job for worker in self._workers):
                    return None
                if attempt + 1 == _ATTEMPTS_TO_START:
                    raise
                time.sleep(_PAUSE)
        return None

    def _collect(self, worker: _Worker) -> tuple[_Job, ExecutionResult]:
        try:
            message = worker.channel.receive()
        except ChannelClosedError:
            if worker.exit_code() == OUT_OF_TIME:
                return self._give_up(worker, "timeout", "judging the answer took too much CPU time")
            return self._give_up(worker, "sandbox_error", "the worker ended")
        assert worker.job is not None
        job, worker.job = worker.job, None
        if message["needs_replacement"]:
            self._replace(worker)
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
        worker = _Worker(self.level, self.folder / str(self._started), self.toolchains)
        self._workers.append(worker)
        self._selector.register(worker.channel.socket, selectors.EVENT_READ, worker)
        return worker


def _new_folder() -> tuple[Path, int]:
    """A folder for a pool's scratch folders, and a descriptor that holds its lock. Removes folders that dead pools left."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _SETTLED:
                remove_unlocked(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o711)
    return folder, lock(folder)


def open_pool(level: str = "auto", workers: int | None = None, languages: Iterable[str] = ("python",)) -> Pool:
    """A pool for these languages at `level`; `auto` takes the strongest level that works on this machine.

    ExecutionError if no level works or a toolchain is missing.
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
