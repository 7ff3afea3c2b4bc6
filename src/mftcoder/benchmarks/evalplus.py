"""HumanEval+ and MBPP+ (Liu et al. 2023, arXiv:2305.01210): the same problems with some eighty and thirty-five times the tests.

The rows are those of the data sets on the Hub (`evalplus/humanevalplus`, `evalplus/mbppplus`), whose `test` field runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks import humaneval, mbpp
from mftcoder.benchmarks.problem import Benchmark, Problem
from mftcoder.benchmarks.sources import HubData, Source

_SECONDS = 30.0  # hundreds of tests a problem


def load_humanevalplus(data_dir: Path | None) -> Benchmark:
    """HumanEval+."""
    source = Source("humanevalplus/HumanEvalPlus.jsonl", HubData("evalplus/humanevalplus"))
    rows, origin = source.rows("humanevalplus", data_dir)
    family = replace(
        humaneval.FAMILY, notes={**humaneval.FAMILY.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS
    )
    return Benchmark("humanevalplus", tuple(map(humaneval.problem_of, rows)), family, origin)


def _mbppplus_problem(row: Mapping[str, Any]) -> Problem:
    problem = mbpp.problem_of({**row, "text": row["prompt"]})
    return replace(problem, tests="\n".join([*row.get("test_imports", ()), row["test"]]) + "\n")


def load_mbppplus(data_dir: Path | None) -> Benchmark:
    """MBPP+."""
    source = Source("mbppplus/MbppPlus.jsonl", HubData("evalplus/mbppplus"))
    rows, origin = source.rows("mbppplus", data_dir)
    family = replace(mbpp.FAMILY, notes={**mbpp.FAMILY.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS)
    return Benchmark("mbppplus", tuple(map(_mbppplus_problem, rows)), family, origin)


EVALPLUS = {"humanevalplus": partial(load_humanevalplus), "mbppplus": partial(load_mbppplus)}
