"""The sandbox for anybody: run one untrusted program, or many, and get how each ended.

`pool.py` does the work. Reads no benchmark and no model's text: a program is an answer and the tests that it must pass.
"""

import weakref
from collections.abc import Iterable

from mftcoder.execution.pool import open_pool
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program


class Sandbox:
    """Runs programs isolated from this machine, at the strongest level that it can hold.

        with Sandbox() as sandbox:
            result = sandbox.run(python_program("def add(a, b): return a + b", "assert add(2, 3) == 5"))
        print(result.status)  # passed

    ExecutionError if the level, or the toolchain of one of the `languages`, cannot be had here.
    """

    def __init__(self, level: str = "auto", *, workers: int | None = None, languages: Iterable[str] = ("python",)):
        self._pool = open_pool(level, workers, languages)
        self.level = self._pool.level
        """`namespaces` or `process`."""
        self.covers = self._pool.covers
        """What the level keeps programs from."""
        self.close = weakref.finalize(self, self._pool.close)
        """End the workers and remove their folders; the end of a `with` block does it too."""

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: Program, limits: Limits | None = None) -> ExecutionResult:
        """How one program ends."""
        [result] = self.run_all([program], limits)
        return result

    def run_all(self, programs: Iterable[Program], limits: Limits | None = None) -> list[ExecutionResult]:
        """How each program ends, in their order; they run on all workers at the same time."""
        keyed = ((str(number), program) for number, program in enumerate(programs))
        results = dict(self._pool.run(keyed, limits or Limits()))
        return [results[str(number)] for number in range(len(results))]


def python_program(answer: str, tests: str, entry_point: str = "") -> Program:
    """A Python answer and its tests, which call what the answer defines.

    `entry_point` names a function of the answer that is called like a builtin, such as `sum`: tests would call Python's own.
    """
    return Program("python", {"candidate": answer, "tests": tests, "entry_point": entry_point})
