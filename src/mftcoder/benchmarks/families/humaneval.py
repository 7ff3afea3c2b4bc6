"""HumanEval (Chen et al. 2021, arXiv:2107.03374): 164 Python functions from signature and docstring.

Assembled as openai/human-eval does: prompt + completion + tests + `check(entry_point)`, with no import header. Also the
project's own small benchmark, which has the same format.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import python_code
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode
from mftcoder.benchmarks.sources import HubData, Source, local_rows
from mftcoder.benchmarks.task import Task
from mftcoder.execution.sandbox import Program


def problem_of(row: Mapping[str, Any]) -> Problem:
    """A row in HumanEval's format."""
    entry_point = row["entry_point"]
    return Problem(
        id=str(row["task_id"]),
        language="python",
        prompt=row["prompt"],
        tests=f"{python_code.helpers_of(row['prompt'], entry_point)}{row['test']}\ncheck({entry_point})\n",
        entry_point=entry_point,
        stop=python_code.STOP_WORDS,
        reference=row["canonical_solution"],
        fields=row,
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


_SOURCE = Source("humaneval/HumanEval.jsonl", HubData("openai/openai_humaneval"))


def load_humaneval(data_dir: Path | None) -> Benchmark:
    """HumanEval from `data_dir` or the Hub."""
    rows, origin = _SOURCE.rows("humaneval", data_dir)
    return Benchmark("humaneval", tuple(map(problem_of, rows)), FAMILY, origin)


def load_mini(data_dir: Path | None) -> Benchmark:
    """The project's own problems, which come with the package."""
    rows, origin = local_rows(Path(str(files("mftcoder.benchmarks.families") / "mini.jsonl")))
    return Benchmark("mini", tuple(map(problem_of, rows)), FAMILY, origin)


HUMANEVAL = {"humaneval": Task(load_humaneval, "python", 164, "MIT", _SOURCE)}
MINI = {"mini": Task(load_mini, "python", 50, "Apache-2.0", None)}
