"""HumanEval (Chen et al. 2021, arXiv:2107.03374): complete 164 Python functions from signature and docstring.

Programs are assembled as in openai/human-eval: prompt + completion + tests + `check(entry_point)`, without an import header. The
project's own small benchmark (`mini`) has the same format.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import python_code
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode, Task, task_of
from mftcoder.benchmarks.sources import HubData, Source, local_records
from mftcoder.execution.sandbox import Program


def problem_of(record: Mapping[str, Any]) -> Problem:
    entry_point = record["entry_point"]
    return Problem(
        id=str(record["task_id"]),
        language="python",
        prompt=record["prompt"],
        tests=f"{python_code.helpers_of(record['prompt'], entry_point)}{record['test']}\ncheck({entry_point})\n",
        entry_point=entry_point,
        stop=python_code.STOP_WORDS,
        reference=record["canonical_solution"],
        fields=record,
    )


def _prompt(problem: Problem, mode: PromptMode) -> str:
    if mode == "completion":
        return problem.prompt.strip()
    request = "Complete the following Python function."
    if mode == "instruct":
        return f"{request}\n\n{problem.prompt}".strip()
    return f"{request} Answer with the whole function in one code block.\n\n```python\n{problem.prompt.rstrip()}\n```"


def _program(problem: Problem, answer: str) -> Program:
    return python_code.python_program(problem, python_code.assemble(problem.prompt, answer, problem.entry_point))


FAMILY = Family(
    prompt=_prompt,
    extract=python_code.answer_in,
    program=_program,
    notes={"header": "none", "test set": "as published", "assembly": "prompt + completion, as openai/human-eval"},
    timeout_seconds=3.0,
)


FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
"""The fields of a record in HumanEval's format."""


def exam_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record in HumanEval's format as a problem of an exam (families/exam.py) of kind complete, with the same tests."""
    problem = problem_of(record)
    return {
        "task_id": problem.id,
        "kind": "complete",
        "instruction": _prompt(problem, "chat"),
        "prompt": problem.prompt,
        "entry_point": problem.entry_point,
        "canonical_solution": problem.reference,
        "test": problem.tests,
        "context": python_code.helpers_of(problem.prompt, problem.entry_point),
    }


MINI_FILE = Path(str(files("mftcoder.benchmarks.families") / "mini.jsonl"))


def load_mini(data_dir: Path | None) -> Benchmark:
    """The project's own problems, which are part of the package."""
    records, origin = local_records(MINI_FILE)
    return Benchmark("mini", tuple(map(problem_of, records)), FAMILY, origin)


_SOURCE = Source("humaneval/HumanEval.jsonl", HubData("openai/openai_humaneval"))
HUMANEVAL = dict([task_of("humaneval", _SOURCE, problem_of, FAMILY, "python", 164, "MIT")])
MINI = {"mini": Task(load_mini, "python", 50, "Apache-2.0", None)}
