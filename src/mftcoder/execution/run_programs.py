"""The sandbox as an API: run one or many untrusted programs and get their results. `pool.py` does the work."""

import weakref
from collections.abc import Iterable

from mftcoder.execution.pool import open_pool
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program


class Sandbox:
    """Runs programs isolated from this machine, by default at the strongest level that works on it.

        with Sandbox() as sandbox:
            result = sandbox.run(python_program("def add(a, b): return a + b", "assert add(2, 3) == 5"))
        print(result.status)  # passed

    ExecutionError if the level, or the toolchain of one of the `languages`, is not available on this machine.
    """

    def __init__(self, level: str = "auto", *, workers: int | None = None, languages: Iterable[str] = ("python",)):
        self._pool = open_pool(level, workers, languages)
        self.level = self._pool.level
        """`namespaces` or `process`."""
        self.covers = self._pool.covers
        """What the level isolates, in words."""
        self.close = weakref.finalize(self, self._pool.close)
        """End the workers and remove their folders, as the end of a `with` block does."""

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, limits: Limits | None = None) -> ExecutionResult:
        """The result of one program."""
        [result] = self.run_all([program], limits)
        return result

    def run_all(self, programs: Iterable[Program], limits: Limits | None = None) -> list[ExecutionResult]:
        """The results of programs, in their order. They run in parallel on all workers."""
        keyed = ((str(number), program) for number, program in enumerate(programs))
        results = dict(self._pool.run(keyed, limits or Limits()))
        return [results[str(number)] for number in range(len(results))]


def python_program(answer: str, tests: str, entry_point: str = "") -> Program:
    """A program of a Python answer and tests that call its functions.

    `entry_point` is needed only if the tests call a function of the answer that has the name of a builtin, such as `sum`.
    """
    return Program("python", {"candidate": answer, "tests": tests, "entry_point": entry_point})
