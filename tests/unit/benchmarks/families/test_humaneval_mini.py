"""The project's own problems: each reference solution passes its tests, an empty completion and a wrong one do not."""

import ast
import doctest
import json
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest

PROBLEMS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (files("mftcoder.benchmarks.families") / "mini.jsonl").read_text(encoding="utf-8").splitlines()
]
IDS = [problem["task_id"] for problem in PROBLEMS]


def passes(problem: dict[str, Any], completion: str) -> bool:
    """True if HumanEval's program (prompt, completion, tests, call) succeeds in a separate interpreter."""
    program = f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, timeout=300, check=False)
    return done.returncode == 0


def test_there_are_fifty_in_humanevals_format() -> None:
    assert [f"mini/{number}" for number in range(50)] == IDS
    assert all(
        set(problem) == {"task_id", "prompt", "entry_point", "canonical_solution", "test"} for problem in PROBLEMS
    )
    assert len({problem["entry_point"] for problem in PROBLEMS}) == 50


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_the_reference_passes_and_an_empty_completion_fails(problem: dict[str, Any]) -> None:
    assert passes(problem, problem["canonical_solution"])
    assert not passes(problem, "")


@pytest.mark.parametrize("problem", PROBLEMS, ids=IDS)
def test_the_prompt_is_a_documented_function_whose_examples_are_true(problem: dict[str, Any]) -> None:
    namespace: dict[str, Any] = {}
    exec(problem["prompt"] + problem["canonical_solution"], namespace)
    function = namespace[problem["entry_point"]]
    (test,) = doctest.DocTestFinder().find(function, problem["entry_point"], globs=namespace)
    outcome = doctest.DocTestRunner(verbose=False).run(test)
    assert (outcome.failed, outcome.attempted >= 2) == (0, True)
    assert len(ast.parse(problem["test"]).body[0].body) >= 3  # type: ignore[attr-defined]
