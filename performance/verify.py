"""How fast records are verified, beside the speed at which `mft evaluate` runs the same answers against the same tests.

    python performance/verify.py --data-dir ../shared/data
    python performance/verify.py --data-dir ../shared/data --tasks mbpp --rounds 5 --workers 2

Goes in: benchmarks in Python. Each reference becomes a record with its tests. Comes out: a table, a row a benchmark: the programs, how many
pass each way, and programs a second, the median of the rounds. Both ways use one pool, in turn, and the first round is not counted.
Planning (what of a record can be run) is part of verification's time, as assembling programs is part of evaluation's.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from mftcoder.benchmarks.assembly import assemble_all
from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.problem import Benchmark
from mftcoder.curation.example import Example
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.plan import plan
from mftcoder.curation.verification.program import program
from mftcoder.curation.verification.verdict import verdict_of
from mftcoder.data.records.formats import read_record
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.sandbox import Limits, Program

LIMITS = Limits(seconds=5)
CONFIG = VerifyConfig(checks=("tests",))


def records_of(benchmark: Benchmark) -> list[bytes]:
    """The references as records: question, answer, tests, entry point."""
    found = []
    for problem in benchmark.problems:
        candidate = benchmark.program(problem, problem.prompt + problem.reference).files["candidate"]
        answer = f"```python\n{candidate}\n```"
        fields = {"prompt": problem.prompt or problem.id, "completion": answer, "tests": problem.tests}
        found.append(json.dumps({**fields, "entry_point": problem.entry_point}).encode())
    return found


def verify(records: list[bytes], pool: Pool) -> int:
    """The records that pass, as the step `verify` runs them."""
    runs = {}
    for number, line in enumerate(records):
        example = Example(read_record(line, format="auto", task="t", origin=""), line)
        runs |= {f"{number}.{place}": run for place, run in enumerate(plan(example, CONFIG).runs)}
    results = pool.run(((key, program(run)) for key, run in runs.items()), LIMITS)
    verdicts = [verdict_of(result, "python", tuple(runs[key].checks)) for key, result in results]
    return sum(verdict is not None and verdict.is_proof and verdict.outcome == "passed" for verdict in verdicts)


def evaluate(benchmark: Benchmark, pool: Pool) -> int:
    """The references that pass, as `mft evaluate` runs them."""
    answers = {problem.id: (problem, problem.prompt + problem.reference) for problem in benchmark.problems}
    programs = {key: made for key, made in assemble_all(benchmark, answers).items() if isinstance(made, Program)}
    return sum(result.status == "passed" for _, result in pool.run(programs.items(), LIMITS))


def timed(action: Callable[[], int]) -> tuple[int, float]:
    """The result, and the seconds."""
    started = time.perf_counter()
    return action(), time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="humaneval,mbpp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    print(
        f"{'benchmark':<12} {'programs':>8} {'passed: verify':>14} {'evaluate':>9} {'per second: verify':>18} {'evaluate':>9}"
    )
    with open_pool(workers=options.workers) as pool:
        for task in options.tasks.split(","):
            benchmark = load(task, options.data_dir)
            records = records_of(benchmark)
            rounds = [
                (timed(lambda: verify(records, pool)), timed(lambda: evaluate(benchmark, pool)))  # noqa: B023
                for _ in range(options.rounds + 1)
            ]
            speeds = [len(records) / statistics.median(pair[way][1] for pair in rounds[1:]) for way in (0, 1)]
            passed = [rounds[-1][way][0] for way in (0, 1)]
            print(f"{task:<12} {len(records):>8} {passed[0]:>14} {passed[1]:>9} {speeds[0]:>18.0f} {speeds[1]:>9.0f}")


if __name__ == "__main__":
    main()
