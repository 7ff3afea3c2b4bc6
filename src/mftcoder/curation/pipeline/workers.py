"""Jobs on all cores: what they need is loaded once a process, and results come back in the order of the jobs.

A job is an object with a method `run`. At most two jobs per process are under way, which bounds the memory.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any, Protocol, TypeVar

from mftcoder.errors import DataError
from mftcoder.processes import has_one_thread, main_module_hidden, start_as_worker

Result = TypeVar("Result", covariant=True)
Tools = Mapping[str, Any]
"""The steps of the recipe by name: the same in every process."""


class Job(Protocol[Result]):
    """Something that can be sent to a process and be done there."""

    def run(self, steps: Tools) -> Result:
        """Do it."""


class Workers:
    """Some processes, or none: then jobs run right here."""

    def __init__(
        self,
        steps: Tools,
        pool: ProcessPoolExecutor | None,
        processes: int,
        meanwhile: Callable[[], object] | None = None,
    ):
        self._steps, self._pool, self._processes = steps, pool, processes
        self._meanwhile = meanwhile  # called once, when the processes have their first jobs

    def map(self, jobs: Iterable[Job[Any]]) -> Iterator[Any]:
        """The result of each job, in the order of the jobs."""
        if self._pool is None:
            yield from (job.run(self._steps) for job in jobs)
            return
        waiting: deque[Future[Any]] = deque()
        for job in jobs:
            with main_module_hidden():  # the pool starts its processes as jobs come in
                waiting.append(self._pool.submit(_run, job))
            if len(waiting) >= 2 * self._processes:
                self._use_the_time()
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _use_the_time(self) -> None:
        if self._meanwhile is not None:
            self._meanwhile()
            self._meanwhile = None


@contextmanager
def open_workers(processes: int, steps: Tools, meanwhile: Callable[[], object] | None = None) -> Iterator[Workers]:
    """Workers that end with the block. DataError if one of them is killed.

    `meanwhile` is called once in this process, when the others have their first jobs; never where there are no others.
    """
    if processes == 1:
        yield Workers(steps, None, 1)
        return
    # A fork spares each process the imports, which take as long as 3 MB of records. It copies no thread but this one, so another thread
    # could leave a lock behind that nobody opens. All processes are forked with the first job, before the pool starts threads of its own.
    context = get_context("fork" if has_one_thread() else "spawn")
    others = set(active_children())
    pool = ProcessPoolExecutor(processes, context, initializer=_start, initargs=(steps,))
    try:
        yield Workers(steps, pool, processes, meanwhile)
    except BrokenProcessPool as error:
        raise DataError(
            "a process was killed (out of memory?). Type the same command again to go on with what is finished, "
            f"perhaps with num_proc={max(1, processes // 2)}."
        ) from error
    except BaseException:
        # An interrupt must not wait for the jobs under way, which may take a minute, nor for a process that the pool does not know yet.
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_steps: Tools = {}


def _start(steps: Tools) -> None:
    global _steps
    start_as_worker()
    _steps = steps
    gc.freeze()
    gc.disable()  # records make no reference cycles, and the collector would look at all of a block again and again


def _run(job: Job[Any]) -> Any:
    try:
        return job.run(_steps)
    finally:
        gc.collect()
