"""Run many programs on all cores: a worker process for each slot, results in the order they are ready.

Goes in: keyed programs and limits. Comes out: `(key, ExecutionResult)`. What it looks after: a worker that dies or hangs is
replaced and costs one program at most. A program whose sandbox failed is run again at the end, alone and on fresh workers; what
fails then too is the answer's doing if the same tests run without the answer, and `sandbox_error` if they do not. Nothing foreign
runs in this process or in a worker; see worker.py, zygote.py and judge.py for who holds what.
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
from mftcoder.execution.isolation.reach import readable_paths
from mftcoder.execution.isolation.scratch import lock, remove_tree, remove_unlocked
from mftcoder.execution.languages import prepare
from mftcoder.execution.sandbox import LEVELS, ExecutionResult, Limits, Program
from mftcoder.execution.toolchains import Toolchain
from mftcoder.registry import did_you_mean

MAX_ANSWER_CHARS = 1 << 20
"""Longer answers fail unseen: no solution is that long, and everything that reads one has to be bounded."""

_PREFIX = "mft-pool-"  # of the folder of a pool, in the folder for temporary files
_ATTEMPTS_ALONE = 2  # of a program whose sandbox failed beside others
_ATTEMPTS_TO_START = 5  # of a worker, while nothing else runs
_PAUSE = 0.5  # seconds between them
_RUNS = 4  # of one program at most: again without a script, or with changed tests
_SETTLED = 60.0  # seconds after which a pool has certainly locked its folder
_GRACE = 20.0  # seconds past a program's own limits after which its worker is taken for lost


@dataclass
class _Job:
    key: str
    program: Program


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
        compiling = 0.0 if job.program.language == "python" else limits.compile_wall_seconds
        self.job, self.deadline = job, time.monotonic() + _RUNS * limits.wall_seconds + compiling + _GRACE
        record = {"key": job.key, "language": job.program.language, "files": dict(job.program.files)}
        self.channel.send({**record, "limits": asdict(limits)})

    def exit_code(self) -> int | None:
        """Of a worker that has hung up; None if it lives on all the same."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=5)
        return None

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
        """End the workers and remove their folders."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._selector.close()
        with contextlib.suppress(FileNotFoundError):  # the last worker to end may have removed it
            remove_tree(self.folder)
        os.close(self._lock)

    def run(self, programs: Iterable[tuple[str, Program]], limits: Limits) -> Iterator[tuple[str, ExecutionResult]]:
        """Results as they come; keys are the caller's and must differ."""
        suspects: list[_Job] = []
        for job, result in self._run_beside_others((_Job(*item) for item in programs), limits):
            if result.status == "sandbox_error":
                suspects.append(job)
            else:
                yield job.key, result
        for job in suspects:
            yield job.key, self._run_alone(job.program, limits)

    def _run_alone(self, program: Program, limits: Limits) -> ExecutionResult:
        """A program whose sandbox failed, with nothing beside it. An answer that breaks its sandbox each time has failed."""
        for _ in range(_ATTEMPTS_ALONE):
            result = self._run_on_fresh_worker(program, limits)
            if result.status != "sandbox_error":
                return result
        empty = replace(program, files={**program.files, "candidate": ""})
        if self._run_on_fresh_worker(empty, limits).status == "sandbox_error":
            return result
        reason = "the sandbox failed each time with this answer, and did not without it"
        return ExecutionResult("failed", stderr=f"{reason}: {result.stderr}")

    def _run_on_fresh_worker(self, program: Program, limits: Limits) -> ExecutionResult:
        for worker in list(self._workers):
            self._replace(worker)
        [(_, result)] = self._run_beside_others(iter([_Job("", program)]), limits)
        return result

    def _run_beside_others(self, jobs: Iterator[_Job], limits: Limits) -> Iterator[tuple[_Job, ExecutionResult]]:
        waiting = deque[_Job]()  # jobs that were taken and not started
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
                else:  # it has ended while it had nothing to do
                    self._replace(worker)
            for worker in busy:
                if worker.job and worker not in ready and worker.deadline <= time.monotonic():
                    yield self._give_up(worker, "timeout", "the run hung")

    def _fill(
        self, jobs: Iterator[_Job], waiting: deque[_Job], limits: Limits
    ) -> Iterator[tuple[_Job, ExecutionResult]]:
        """Give every free slot a job, and start workers while there are jobs for them. Results of jobs that cannot be run."""
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
        """One without a job, started if there is none; None if it cannot be started while others run: they may be in its way."""
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
                return self._give_up(worker, "timeout", "judging the answer took too much of the processor")
            return self._give_up(worker, "sandbox_error", "the worker ended")
        assert worker.job is not None
        job, worker.job = worker.job, None
        if message["worn"]:
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
    """A folder for the scratch folders of a pool, and a descriptor that holds its lock; folders that nobody locks go."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _SETTLED:
                remove_unlocked(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o711)
    return folder, lock(folder)


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
