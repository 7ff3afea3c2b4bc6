"""Every negative control of the benchmarks: does a right answer fail each test with a changed expectation, as it must?

    python benchmarks/controls.py --data-dir ../shared/data                                  HumanEvalPack in all languages
    python benchmarks/controls.py --data-dir ../shared/data --tasks codefuseeval-translation-java-cpp --limit 50

Goes in: the benchmarks' data. Comes out: a table, a row a task: claims of the tests, and what became of the reference beside each of
them changed. `not failed` must be 0, for there a right answer would be taken for a cheat; `never reached` says nothing about either.
`mft evaluate` draws one claim a passing answer; this runs all of them, so it takes its time.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

from mftcoder.benchmarks.catalogue import load
from mftcoder.execution.claims_python import count_claims
from mftcoder.execution.judging import NO_CHANGE, Sides, control, run_once
from mftcoder.execution.languages import prepare
from mftcoder.execution.reach import readable_paths
from mftcoder.execution.sandbox import Limits, Program
from mftcoder.execution.worker import Slot
from mftcoder.execution.zygote_handle import SlotSettings, unused_uid

LANGUAGES = ("python", "js", "cpp", "java", "go", "rust")


def outcomes(slot: Slot, program: Program, limits: Limits, most: int) -> tuple[Counter, list[str]]:
    """How the reference ends beside each claim changed, up to `most` of them spread over the tests; and those that it passes."""
    if program.language == "python":
        return python_outcomes(slot, program, limits, most)
    counts: Counter = Counter(problems=1)
    odd: list[str] = []
    with slot.runner(program.language).sides(program, limits, slot.commands()) as sides:
        if not isinstance(sides, Sides) or run_once(sides, NO_CHANGE, limits)[0] != "passed":
            return Counter(problems=1, unsolved=1), odd
        counts["without"] += sides.claims == 0
        counts["claims"] += sides.claims
        for claim in range(0, sides.claims, max(1, sides.claims // most)):
            word = control(sides, claim, limits)
            counts[word] += 1
            odd += [str(claim)] if word == "passed" else []
    return counts, odd


def python_outcomes(slot: Slot, program: Program, limits: Limits, most: int) -> tuple[Counter, list[str]]:
    """The same for Python, whose tests run again within one run."""
    claims = count_claims(program.files["tests"])
    if slot.run(program, limits).status != "passed":
        return Counter(problems=1, unsolved=1), []
    counts: Counter = Counter(problems=1, without=int(claims == 0), claims=claims)
    odd: list[str] = []
    for claim in range(0, claims, max(1, claims // most)):
        with mock.patch("mftcoder.execution.python_run.secrets.randbelow", return_value=claim):
            passes = slot.run(program, limits).status == "cheated"
        counts["passed" if passes else "failed"] += 1
        odd += [str(claim)] if passes else []
    return counts, odd


def row(task: str, arguments: argparse.Namespace) -> str:
    """One line of the table; problems that are not as they should be, by name."""
    benchmark = load(task, Path(arguments.data_dir), arguments.limit)
    language = benchmark.problems[0].language
    toolchains = {} if language == "python" else {language: prepare(language)}
    total: Counter = Counter()
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mft-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        scratch = Path(folder, "1")
        scratch.mkdir(mode=0o711)
        readable = readable_paths(*(path for toolchain in toolchains.values() for path in toolchain.readable))
        slot = Slot(SlotSettings(arguments.level, str(scratch), unused_uid(arguments.level), readable), toolchains)
        for problem in benchmark.problems:
            if arguments.problems and problem.id.split("/")[-1] not in arguments.problems.split(","):
                continue
            program = benchmark.program(
                problem, problem.prompt + problem.reference if "fix" in task else problem.reference
            )
            counts, odd = outcomes(slot, program, Limits(seconds=benchmark.family.timeout_seconds), arguments.most)
            total += counts
            names += [f"{problem.id}: claims {', '.join(odd)}"] if odd else []
            names += [f"{problem.id}: no control"] if counts["without"] else []
        slot.close()
    cells = (total[key] for key in ("problems", "unsolved", "without", "claims", "failed", "void", "passed"))
    return f"| {task} | {' | '.join(map(str, cells))} | {'; '.join(names)} |"


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
    print("| task | problems | unsolved | without a control | claims | failed | never reached | not failed | which |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in arguments.tasks.split(","):
        print(row(task, arguments), flush=True)


if __name__ == "__main__":
    main()
