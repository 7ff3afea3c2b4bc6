"""HumanEval+ and MBPP+ (Liu et al. 2023, arXiv:2305.01210): the same problems with about 80 and 35 times as many tests.

The records are those of the Hub's datasets (`evalplus/humanevalplus`, `evalplus/mbppplus`); their field `test` is what runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mftcoder.benchmarks.families import humaneval, mbpp
from mftcoder.benchmarks.problem import Family, Problem, task_of
from mftcoder.benchmarks.sources import HubData, Source

_SECONDS = 30.0  # hundreds of tests per problem
_HUMANEVAL = Source("humanevalplus/HumanEvalPlus.jsonl", HubData("evalplus/humanevalplus"))
_MBPP = Source("mbppplus/MbppPlus.jsonl", HubData("evalplus/mbppplus"))


def _mbppplus_problem(record: Mapping[str, Any]) -> Problem:
    problem = mbpp.problem_of({**record, "text": record["prompt"]})
    return replace(problem, tests="\n".join([*record.get("test_imports", ()), record["test"]]) + "\n")


def _of(family: Family) -> Family:
    """The family with EvalPlus's tests."""
    return replace(family, notes={**family.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS)


EVALPLUS = dict(
    [
        task_of("humanevalplus", _HUMANEVAL, humaneval.problem_of, _of(humaneval.FAMILY), "python", 164, "Apache-2.0"),
        task_of("mbppplus", _MBPP, _mbppplus_problem, _of(mbpp.FAMILY), "python", 378, "Apache-2.0"),
    ]
)
