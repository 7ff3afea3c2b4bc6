"""Every negative control of the benchmarks: does a right answer fail each test with a changed expectation, and what does one cost?

    python performance/controls.py --data-dir ../shared/data                                  HumanEvalPack in all languages
    python performance/controls.py --data-dir ../shared/data --tasks codefuseeval-translation-java-cpp --limit 50
    python performance/controls.py --data-dir ../shared/data --most 1 --limit 50              the times, and few of the controls

Goes in: the benchmarks' data. Comes out: a table, a row a task: claims of the tests, and what became of the reference beside each of
them changed. `not failed` must be 0, for there a right answer would be taken for a cheat; `never reached` says nothing about either.
The times are means over the problems: of a right answer without a control, compilers included, and of one control. An answer that
fails has none. `mft evaluate` draws one claim a passing answer; this runs all of them, so it takes its time.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.problem import Benchmark, Problem
from mftcoder.execution.compiled.judging import NO_CHANGE, Sides, negative_control, run_once
from mftcoder.execution.isolation.confinement import readable_paths
from mftcoder.execution.languages import prepare
from mftcoder.execution.python import run as python_run
from mftcoder.execution.python.claims import count_claims
from mftcoder.execution.python.judge import Judge
from mftcoder.execution.python.zygote_handle import SlotSettings, unused_uid
from mftcoder.execution.sandbox import Limits, Program
from mftcoder.execution.worker import Slot

LANGUAGES = ("python", "js", "cpp", "java", "go", "rust")
COUNTS = ("problems", "unsolved", "without", "claims", "failed", "void", "passed")


class Outcomes:
    """What became of one reference: counts, seconds, and the claims that it passes when they are changed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(problems=1)
        self.seconds: Counter[str] = Counter()
        self.odd: list[int] = []

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add what the block takes."""
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started

    def add(self, claim: int, outcome: str) -> None:
        """Count how the reference ended with this claim changed."""
        self.counts[outcome] += 1
        if outcome == "passed":
            self.odd.append(claim)


def some_of(claims: int, most: int) -> range:
    """Up to about `most` claims, spread over the tests."""
    return range(0, claims, max(1, claims // most))


def of_two_processes(slot: Slot, program: Program, limits: Limits, most: int) -> Outcomes:
    """A language whose tests have a process of their own: both processes run again for each claim."""
    found = Outcomes()
    started = time.perf_counter()
    with slot.runner(program.language).sides(program, limits, slot.commands()) as sides:
        if not isinstance(sides, Sides) or run_once(sides, NO_CHANGE, limits)[0] != "passed":
            found.counts["unsolved"] = 1
            return found
        found.seconds["answer"] = time.perf_counter() - started
        found.counts += Counter(without=int(sides.claims == 0), claims=sides.claims)
        for claim in some_of(sides.claims, most):
            with found.timed("controls"):
                outcome = negative_control(sides, claim, limits)
            found.add(claim, outcome)
    return found


def of_python(slot: Slot, program: Program, limits: Limits, most: int) -> Outcomes:
    """Python, whose tests run again within one run."""
    found = Outcomes()
    claims = count_claims(program.files["tests"])
    slot.run(program, limits)  # a second run asks all its questions at once
    with found.timed("answer"), mock.patch.object(python_run, "count_claims", return_value=0):
        status = slot.run(program, limits).status
    if status != "passed":
        found.counts["unsolved"] = 1
        return found
    found.counts += Counter(without=int(claims == 0), claims=claims)
    with mock.patch.object(python_run, "_passes_negative_control", timed_control(found)):
        for claim in some_of(claims, most):
            with mock.patch.object(python_run.secrets, "randbelow", return_value=claim):
                status = slot.run(program, limits).status
            found.add(claim, "passed" if status == "cheated" else "failed")
    return found


def timed_control(found: Outcomes) -> Callable[[Judge, str, str], bool]:
    """Python's control, its time added to the others."""
    control_of_python = python_run._passes_negative_control

    def control_once(judge: Judge, tests: str, entry_point: str) -> bool:
        with found.timed("controls"):
            return control_of_python(judge, tests, entry_point)

    return control_once


@contextmanager
def slot_for(language: str, level: str) -> Iterator[Slot]:
    """One slot, as a pool has them."""
    toolchains = {} if language == "python" else {language: prepare(language)}
    with tempfile.TemporaryDirectory(prefix="mft-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        scratch = Path(folder, "1")
        scratch.mkdir(mode=0o711)
        readable = readable_paths(*(path for toolchain in toolchains.values() for path in toolchain.readable))
        slot = Slot(SlotSettings(level, str(scratch), unused_uid(level, toolchains.values()), readable), toolchains)
        try:
            yield slot
        finally:
            slot.close()


def reference(benchmark: Benchmark, problem: Problem) -> Program:
    """The problem's own solution. A repaired function goes behind the declaration, as a model would write it."""
    code = problem.prompt + problem.reference if "fix" in benchmark.name else problem.reference
    return benchmark.program(problem, code)


def row(task: str, arguments: argparse.Namespace) -> str:
    """One line of the table; problems that are not as they should be, by name."""
    benchmark = load(task, Path(arguments.data_dir), arguments.limit)
    language = benchmark.problems[0].language
    limits = Limits(seconds=benchmark.family.timeout_seconds)
    outcomes = of_python if language == "python" else of_two_processes
    counts, seconds, names = Counter[str](), Counter[str](), []
    with slot_for(language, arguments.level) as slot:
        for problem in benchmark.problems:
            if arguments.problems and problem.id.split("/")[-1] not in arguments.problems.split(","):
                continue
            found = outcomes(slot, reference(benchmark, problem), limits, arguments.most)
            counts.update(found.counts)
            seconds.update(found.seconds)
            names += [f"{problem.id}: claims {', '.join(map(str, found.odd))}"] if found.odd else []
            names += [f"{problem.id}: no control"] if found.counts["without"] else []
    solved = max(1, counts["problems"] - counts["unsolved"])
    controls = max(1, counts["failed"] + counts["void"] + counts["passed"])
    times = (1000 * seconds["answer"] / solved, 1000 * seconds["controls"] / controls)
    return " | ".join(
        [f"| {task}", *(str(counts[key]) for key in COUNTS), *(f"{t:.0f}" for t in times), "; ".join(names)]
    )


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--tasks", default=",".join(f"humanevalsynthesize-{language}" for language in LANGUAGES))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--problems", help="their numbers")
    parser.add_argument("--most", type=int, default=1000, help="claims a problem")
    parser.add_argument("--level", default="namespaces")
    arguments = parser.parse_args()
    print(
        "| task | problems | unsolved | without a control | claims | failed | never reached | not failed | ms an answer | ms a control | which |"
    )
    print(f"|---{'|---' * 10}|")
    for task in arguments.tasks.split(","):
        print(row(task, arguments), "|", flush=True)


if __name__ == "__main__":
    main()
