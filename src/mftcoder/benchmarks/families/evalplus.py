"""HumanEval+ and MBPP+ (Liu et al. 2023, arXiv:2305.01210): the same problems with some eighty and thirty-five times the tests.

The rows are those of the data sets on the Hub (`evalplus/humanevalplus`, `evalplus/mbppplus`), whose `test` field runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.families import humaneval, mbpp
from mftcoder.benchmarks.problem import Benchmark, Problem
from mftcoder.benchmarks.sources import HubData, Source
from mftcoder.benchmarks.task import Task

_SECONDS = 30.0  # hundreds of tests a problem
_HUMANEVAL = Source("humanevalplus/HumanEvalPlus.jsonl", HubData("evalplus/humanevalplus"))
_MBPP = Source("mbppplus/MbppPlus.jsonl", HubData("evalplus/mbppplus"))


def load_humanevalplus(data_dir: Path | None) -> Benchmark:
    """HumanEval+."""
    rows, origin = _HUMANEVAL.rows("humanevalplus", data_dir)
    family = replace(
        humaneval.FAMILY, notes={**humaneval.FAMILY.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS
    )
    return Benchmark("humanevalplus", tuple(map(humaneval.problem_of, rows)), family, origin)


def _mbppplus_problem(row: Mapping[str, Any]) -> Problem:
    problem = mbpp.problem_of({**row, "text": row["prompt"]})
    return replace(problem, tests="\n".join([*row.get("test_imports", ()), row["test"]]) + "\n")


def load_mbppplus(data_dir: Path | None) -> Benchmark:
    """MBPP+."""
    rows, origin = _MBPP.rows("mbppplus", data_dir)
    family = replace(mbpp.FAMILY, notes={**mbpp.FAMILY.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS)
    return Benchmark("mbppplus", tuple(map(_mbppplus_problem, rows)), family, origin)


EVALPLUS = {
    "humanevalplus": Task(load_humanevalplus, "python", 164, "Apache-2.0", _HUMANEVAL),
    "mbppplus": Task(load_mbppplus, "python", 378, "Apache-2.0", _MBPP),
}
