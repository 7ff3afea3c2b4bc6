"""HumanEval+ and MBPP+ (Liu et al. 2023, arXiv:2305.01210): the same problems with about 80 and 35 times as many tests.

The records are those of the Hub's datasets (`evalplus/humanevalplus`, `evalplus/mbppplus`); their field `test` is what runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.families import humaneval, mbpp
from mftcoder.benchmarks.problem import Benchmark, Problem, Task
from mftcoder.benchmarks.sources import HubData, Source

_SECONDS = 30.0  # hundreds of tests per problem
_HUMANEVAL = Source("humanevalplus/HumanEvalPlus.jsonl", HubData("evalplus/humanevalplus"))
_MBPP = Source("mbppplus/MbppPlus.jsonl", HubData("evalplus/mbppplus"))


def load_humanevalplus(data_dir: Path | None) -> Benchmark:
    records, origin = _HUMANEVAL.records("humanevalplus", data_dir)
    family = replace(
        humaneval.FAMILY, notes={**humaneval.FAMILY.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS
    )
    return Benchmark("humanevalplus", tuple(map(humaneval.problem_of, records)), family, origin)


def _mbppplus_problem(record: Mapping[str, Any]) -> Problem:
    problem = mbpp.problem_of({**record, "text": record["prompt"]})
    return replace(problem, tests="\n".join([*record.get("test_imports", ()), record["test"]]) + "\n")


def load_mbppplus(data_dir: Path | None) -> Benchmark:
    records, origin = _MBPP.records("mbppplus", data_dir)
    family = replace(mbpp.FAMILY, notes={**mbpp.FAMILY.notes, "test set": "EvalPlus"}, timeout_seconds=_SECONDS)
    return Benchmark("mbppplus", tuple(map(_mbppplus_problem, records)), family, origin)


EVALPLUS = {
    "humanevalplus": Task(load_humanevalplus, "python", 164, "Apache-2.0", _HUMANEVAL),
    "mbppplus": Task(load_mbppplus, "python", 378, "Apache-2.0", _MBPP),
}
