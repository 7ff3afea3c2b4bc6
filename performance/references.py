"""The benchmarks judged by their own solutions: reference, buggy and empty answers of every language, as a Markdown table.

    python performance/references.py --data-dir ../shared/data                 all of it
    python performance/references.py --data-dir ../shared/data --languages js,go --kinds reference
    python performance/references.py --data-dir ../shared/data --tasks humanevalx-cpp,codefuseeval-mbpp_x

Goes in: the benchmarks' data. Comes out: a table on standard output, a row a task and kind of answer, with the problems that end
other than they should by name; and the metrics of each row under --out. A row that is already under --out is not run again.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mftcoder.app.scoring.evaluate import evaluate
from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.problem import Problem

LANGUAGES = ("python", "js", "cpp", "java", "go", "rust")
KINDS = ("reference", "buggy", "empty")


def answer(problem: Problem, kind: str, task: str) -> str:
    """The answer of a kind. A repaired function goes behind the declaration, as a model would write it."""
    if kind == "empty":
        return ""
    code = str(problem.fields["buggy_solution"]) if kind == "buggy" else problem.reference
    return problem.prompt + code if "fix" in task else code


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Task and kind, in the order of the table."""
    if arguments.tasks:
        yield from (
            (task, kind)
            for task in arguments.tasks.split(",")
            for kind in arguments.kinds.split(",")
            if kind != "buggy"
        )
        return
    kinds = arguments.kinds.split(",")
    for language in arguments.languages.split(","):
        yield from ((f"humanevalsynthesize-{language}", kind) for kind in kinds if kind != "buggy")
        yield from ((f"humanevalfixtests-{language}", kind) for kind in kinds if kind != "empty")


def score(task: str, kind: str, arguments: argparse.Namespace) -> dict:
    """The metrics of one row, from a run of `mft evaluate`'s own code."""
    out = Path(arguments.out)
    path = out / f"generations_{task}_{kind}.json"
    metrics = out / f"metrics_{task}_{kind}.json"
    if not metrics.exists():
        benchmark = load(task, Path(arguments.data_dir))
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([[answer(problem, kind, task)] for problem in benchmark.problems]))
        where = {"data_dir": arguments.data_dir, "out": out}
        evaluate(path, task=task, sandbox=arguments.sandbox, workers=arguments.workers, **where)
    return json.loads(metrics.read_text())


def odd_ones(metrics: dict, kind: str) -> str:
    """Problems whose answer ended otherwise than its kind should."""
    expected = kind == "reference"
    names = [row["id"] for row in metrics["problems"] if (row["passed"] > 0) != expected]
    shown = ", ".join(re.sub(r"^\w+/", "", name) for name in names[:8])
    return f"{shown}, ... ({len(names)})" if len(names) > 8 else shown


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", default="runs/references")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--tasks", help="instead of --languages: these tasks")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--workers", type=int)
    arguments = parser.parse_args()
    print("| task | answers | passed | of | not as expected |")
    print("|---|---|---|---|---|")
    for task, kind in rows(arguments):
        metrics = score(task, kind, arguments)
        passed, total = metrics["programs"]["passed"], sum(metrics["programs"].values())
        print(
            f"| {task} | {kind} | {passed} | {total} | {odd_ones(metrics, kind)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
