"""How fast records are verified, beside the speed at which `mft evaluate` runs the same answers against the same tests.

    python performance/verify.py --data-dir ../shared/data
    python performance/verify.py --data-dir ../shared/data --tasks mbpp --rounds 5 --workers 2
    python performance/verify.py --data-dir ../shared/data --commands

Goes in: benchmarks in Python. Each reference becomes a record with its tests. Comes out: a table with two rows a benchmark: records and programs
(a program is one run in the sandbox), how many pass, both a second, and the processor seconds of all processes. Both ways use one pool, in
turn; the first round is not counted, and the median of the others is shown. Planning (what of a record can be run) is part of verification's
time, as assembling programs is part of evaluation's. Verification runs the tests three or four times in a program: with the answer, without
it, and with answers that do nothing. Evaluation runs them with the answer, and twice with a changed claim on the same replies.
The last column is the longest program: neither way ends before it, and while it runs, one worker does all others. Where a program takes
more than a second, further rows show the benchmark without it.

With --commands, the rows are `mft data verify` and `mft evaluate` from the start of the process to its end, all that they write included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mftcoder.benchmarks.assembly import assemble_all
from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.problem import Benchmark
from mftcoder.curation.example import Example
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.plan import Run, plan
from mftcoder.curation.verification.verdict import verdict_of
from mftcoder.data.records.formats import read_record
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.sandbox import Limits, Program

LIMITS = Limits(seconds=5)
CONFIG = VerifyConfig(checks=("tests",))
LONG = 1.0


class Round(NamedTuple):
    """What one way did with all records."""

    programs: int
    passed: int
    longest: float = 0.0  # seconds of the longest program, where it is known
    long: frozenset[str] = frozenset()  # problems whose program took more than LONG seconds


def records_of(benchmark: Benchmark) -> list[bytes]:
    """The references as records: question, answer, tests, entry point."""
    found = []
    for problem in benchmark.problems:
        candidate = benchmark.program(problem, problem.prompt + problem.reference).files["candidate"]
        answer = f"```python\n{candidate}\n```"
        fields = {"prompt": problem.prompt or problem.id, "completion": answer, "tests": problem.tests}
        found.append(json.dumps({**fields, "entry_point": problem.entry_point}).encode())
    return found


def verify(records: list[bytes], pool: Pool) -> Round:
    """As the step `verify` runs the records."""
    runs: dict[str, Run] = {}
    results = dict(pool.run(_programs(records, runs), LIMITS))
    verdicts = [verdict_of(result, "python", tuple(runs[key].checks)) for key, result in results.items()]
    passed = sum(verdict is not None and verdict.is_proof and verdict.outcome == "passed" for verdict in verdicts)
    return Round(len(runs), passed, max(result.seconds for result in results.values()))


def _programs(records: list[bytes], runs: dict[str, Run]) -> Iterator[tuple[str, Program]]:
    for number, line in enumerate(records):
        example = Example(read_record(line, format="auto", task="t", origin=""), line)
        for place, run in enumerate(plan(example, CONFIG).runs):
            runs[f"{number}.{place}"] = run
            yield f"{number}.{place}", run.program()


def evaluate(benchmark: Benchmark, pool: Pool) -> Round:
    """As `mft evaluate` runs the references."""
    answers = {problem.id: (problem, problem.prompt + problem.reference) for problem in benchmark.problems}
    programs = {key: made for key, made in assemble_all(benchmark, answers).items() if isinstance(made, Program)}
    results = dict(pool.run(programs.items(), LIMITS))
    passed = sum(result.status == "passed" for result in results.values())
    long = frozenset(key for key, result in results.items() if result.seconds > LONG)
    return Round(len(programs), passed, max(result.seconds for result in results.values()), long)


def verify_command(records: list[bytes], folder: Path, workers: int | None) -> Round:
    """`mft data verify` on a file of the records."""
    (folder / "records.jsonl").write_bytes(b"\n".join(records))
    steps = [{"verify": {"checks": ["tests"]}}]
    recipe = {"tasks": {"t": str(folder / "records.jsonl")}, "steps": steps, "output_dir": str(folder / "out")}
    (folder / "recipe.json").write_text(json.dumps({**recipe, "num_proc": workers, "seed": time.time_ns() % 10**9}))
    _mft("data", "curate", folder / "recipe.json")
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return Round(len(records), manifest["kept"])


def evaluate_command(benchmark: Benchmark, data_dir: Path, folder: Path, workers: int | None) -> Round:
    """`mft evaluate` on a file of the references."""
    out, answers = folder / f"scores-{time.time_ns()}", folder / f"generations_{benchmark.name}_references.jsonl"
    lines = [{"task_id": found.id, "generation": found.prompt + found.reference} for found in benchmark.problems]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cores = ["--workers", workers] if workers else []
    _mft("evaluate", answers, "--task", benchmark.name, "--data-dir", data_dir, "--out", out, *cores)
    (metrics,) = out.glob("metrics_*.json")
    programs = json.loads(metrics.read_text())["programs"]
    return Round(sum(programs.values()), programs["passed"])


def _mft(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "mftcoder", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def timed(action: Callable[[], Round]) -> tuple[Round, float, float]:
    """The result, seconds, and processor seconds of the processes that have ended by then and of this one."""
    started, cpu = time.perf_counter(), cpu_seconds()
    found = action()
    return found, time.perf_counter() - started, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Of this process, its children that have ended, and the sandbox's processes that still run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(map(_used, _descendants(os.getpid())))


def _descendants(process: int) -> Iterator[int]:
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        yield int(child)
        yield from _descendants(int(child))


def _used(process: int) -> float:
    """Processor seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", default="humaneval,mbpp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--commands", action="store_true", help="time the two commands from start to end")
    options = parser.parse_args()
    print("| benchmark | way | records | programs | passed | s | records/s | programs/s | CPU s | longest program, s |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        pool = None if options.commands else stack.enter_context(open_pool(workers=options.workers))
        for task in options.tasks.split(","):
            benchmark = load(task, options.data_dir)
            long = _measure(task, benchmark, pool, Path(folder), options)
            if long:
                others = tuple(problem for problem in benchmark.problems if problem.id not in long)
                title = f"{task} without {', '.join(sorted(long))}"
                _measure(title, replace(benchmark, problems=others), pool, Path(folder), options)


def _measure(
    title: str, benchmark: Benchmark, pool: Pool | None, folder: Path, options: argparse.Namespace
) -> frozenset[str]:
    """Print the rows of a benchmark; returns the problems that took long in each round."""
    ways = _ways(benchmark, pool, folder, options)
    rounds = [[timed(action) for action in ways.values()] for _ in range(options.rounds + 1)][1:]
    for number, way in enumerate(ways):
        _print_row(title, way, len(benchmark.problems), [found[number] for found in rounds])
    return frozenset.intersection(*(rows[-1][0].long for rows in rounds))


def _ways(
    benchmark: Benchmark, pool: Pool | None, folder: Path, options: argparse.Namespace
) -> dict[str, Callable[[], Round]]:
    records = records_of(benchmark)
    if pool is None:
        return {
            "`mft data verify`": lambda: verify_command(records, folder, options.workers),
            "`mft evaluate`": lambda: evaluate_command(benchmark, options.data_dir, folder, options.workers),
        }
    return {"verify": lambda: verify(records, pool), "evaluate": lambda: evaluate(benchmark, pool)}


def _print_row(task: str, way: str, records: int, rounds: list[tuple[Round, float, float]]) -> None:
    programs, passed = rounds[-1][0][:2]
    seconds = statistics.median(found[1] for found in rounds)
    longest = statistics.median(found[0].longest for found in rounds)
    cpu = statistics.median(found[2] for found in rounds)
    rates = f"{records / seconds:.0f} | {programs / seconds:.0f}"
    times = f"{cpu:.2f} | {f'{longest:.2f}' if longest else ''}"
    print(f"| {task} | {way} | {records} | {programs} | {passed} | {seconds:.2f} | {rates} | {times} |", flush=True)


if __name__ == "__main__":
    main()
