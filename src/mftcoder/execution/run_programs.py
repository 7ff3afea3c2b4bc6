"""The sandbox as an API: run one or many untrusted programs and get their results. `pool.py` does the work."""

import json
import threading
import weakref
from collections.abc import Iterable, Sequence

from mftcoder.errors import ExecutionError
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
        self._languages = {"python", languages} if isinstance(languages, str) else {"python", *languages}
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise ExecutionError(
                f"workers: must be a whole number of at least 1, or None for one per core, not {workers!r}"
            )
        self._pool = open_pool(str(level), workers, self._languages)
        self._batch = threading.Lock()  # the pool runs one batch at a time
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
        """The result of one program. Threads may share a sandbox: one waits for the other."""
        [result] = self.run_all([program], limits)
        return result

    def run_all(self, programs: Iterable[Program], limits: Limits | None = None) -> list[ExecutionResult]:
        """The results of programs, in their order. They run in parallel on all workers."""
        if isinstance(programs, str | Program) or not isinstance(programs, Iterable):
            raise ExecutionError(
                f"programs: is a {type(programs).__name__}; give a list of programs, or call run for one"
            )
        if not isinstance(limits, Limits | None):
            raise ExecutionError(f"limits: is a {type(limits).__name__}; give Limits(seconds=...)")
        given = list(programs)
        self._check(given)
        with self._batch:
            if not self.close.alive:
                raise ExecutionError("sandbox: is closed; open a new one")
            results = dict(
                self._pool.run(((str(number), program) for number, program in enumerate(given)), limits or Limits())
            )
        return [results[str(number)] for number in range(len(given))]

    def _check(self, programs: Sequence[Program]) -> None:
        """ExecutionError for what is no program, holds no text, or is in a language that this sandbox did not prepare."""
        for number, program in enumerate(programs):
            if not isinstance(program, Program):
                raise ExecutionError(
                    f"programs[{number}]: is a {type(program).__name__}; make one with python_program(...)"
                )
            if program.language not in self._languages:
                raise ExecutionError(
                    f"programs[{number}]: language {program.language!r}: not prepared; name it in Sandbox(languages=...)"
                )
            wrong = [role for role, text in program.files.items() if not isinstance(text, str)]
            if wrong or "candidate" not in program.files:
                raise ExecutionError(f"programs[{number}]: {wrong[0] if wrong else 'candidate'}: must be text")


def python_program(answer: str, tests: str, entry_point: str = "") -> Program:
    """A program of a Python answer and tests that call its functions.

    `entry_point` is needed only if the tests call a function of the answer that has the name of a builtin, such as `sum`.
    Tests call functions and classes of the answer; a variable of it, such as `x = 1`, equals nothing in them.
    """
    for name, text in (("answer", answer), ("tests", tests), ("entry_point", entry_point)):
        if not isinstance(text, str):
            raise ExecutionError(f"{name}: must be text, not {type(text).__name__}")
    if not tests.strip():
        raise ExecutionError("tests: are empty, so that any answer would pass; write at least one assert")
    return Program("python", {"candidate": answer, "tests": tests, "entry_point": entry_point})


_RUNNER = """
def printed():
    import contextlib, io, json, traceback
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            exec(compile({code!r}, "answer.py", "exec"), {{"__name__": "__main__"}})
        except SystemExit:
            pass
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            error.__traceback__ = None
            lines = [frame for frame in frames if frame.filename == "answer.py"]
            print("Traceback (most recent call last):")
            for frame in lines:
                print(f'  File "answer.py", line {{frame.lineno}}, in {{frame.name}}')
            print("".join(traceback.format_exception_only(error)), end="")
    return json.dumps(output.getvalue()[:{most}])
"""
_TESTS = "class Printed(Exception): pass\nraise Printed(printed())\n"
_MARK = "Printed: "
MOST = 20_000  # characters that are shown


def run_script(sandbox: Sandbox, code: str) -> str:
    """What a script prints, its traceback included. ExecutionError if it was stopped, with the reason."""
    program = Program(
        "python",
        {"candidate": _RUNNER.format(code=code, most=MOST), "tests": _TESTS, "entry_point": "printed", "report": "yes"},
    )
    result = sandbox.run(program, Limits(output_kb=16 * MOST // 1024))
    if result.status != "failed" or not result.stderr.startswith(_MARK):
        raise ExecutionError(f"the script was stopped: {result.status}{result.stderr and f': {result.stderr}'}")
    return str(json.loads(result.stderr.removeprefix(_MARK)))
