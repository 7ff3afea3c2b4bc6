"""MBPP (Austin et al. 2021, arXiv:2108.07732): write 500 Python functions from a sentence and a test (task_id 11 to 510).

The set-up code runs after the candidate and before the asserts, because tasks 367 and 927 build objects of a class that the
solution defines. The challenge tests of 11 records are not run, as in the paper.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import python_code
from mftcoder.benchmarks.answers.extraction import best_block, cut_at_stop_words, first_code
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode, Task
from mftcoder.benchmarks.sources import HubData, Source
from mftcoder.execution.sandbox import Program

_TEST_SPLIT = range(11, 511)
STOP_WORDS = ("\nassert", "\nprint(", '\n"""', "\n```", "\nif __name__")
ANSWER_STOP_WORDS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/")
"""For an answer to an instruction: those of the Qwen contest's harness, which looks for a fenced block."""


def problem_of(record: Mapping[str, Any]) -> Problem:
    """The problem of a record. Its prompt is that of the reference harness: a docstring of the text and the first test."""
    first_test = record["test_list"][0]
    return Problem(
        id=str(record["task_id"]),
        language="python",
        prompt=f'"""\n{record["text"]}\n{first_test}\n"""\n',
        tests="\n".join([record.get("test_setup_code") or "", *record["test_list"]]) + "\n",
        entry_point=entry_point_of(record["code"], first_test),
        stop=STOP_WORDS,
        reference=record["code"],
        fields=record,
    )


def entry_point_of(code: str, test: str) -> str:
    """The function of `code` that `test` calls."""
    return next((name for name in re.findall(r"^def (\w+)", code, re.MULTILINE) if f"{name}(" in test), "")


def _prompt(problem: Problem, mode: PromptMode) -> str:
    if mode != "chat":
        return problem.prompt.strip() if mode == "instruct" else problem.prompt
    tests = "\n".join(problem.fields["test_list"])
    return f"{problem.fields['text']} Answer with one Python code block. It must pass these tests:\n\n```python\n{tests}\n```"


def extract(problem: Problem, text: str, mode: PromptMode) -> str:
    if mode == "chat":
        return best_block(text, problem.entry_point) or text
    if mode == "instruct":
        return problem.prompt + first_code(text, ANSWER_STOP_WORDS)
    return problem.prompt + cut_at_stop_words(text, problem.stop)


def stop_words(problem: Problem, mode: PromptMode) -> tuple[str, ...]:
    """Where a completion or an answer to an instruction ends."""
    return {"completion": problem.stop, "instruct": ANSWER_STOP_WORDS, "chat": ()}[mode]


def program(problem: Problem, answer: str) -> Program:
    """The prompt's docstring and the answer, with the tests."""
    return python_code.python_program(problem, python_code.assemble(problem.prompt, answer, problem.entry_point))


FAMILY = Family(
    prompt=_prompt,
    extract=extract,
    program=program,
    notes={"header": "none", "test set": "test_list", "assembly": "prompt docstring, answer, test_setup_code, tests"},
    stop=stop_words,
    fenced=("chat", "instruct"),
)


_SOURCE = Source("mbpp/mbpp.jsonl", HubData("google-research-datasets/mbpp", "full"))


def load_mbpp(data_dir: Path | None) -> Benchmark:
    """The test split from `data_dir` or the Hub."""
    records, origin = _SOURCE.records("mbpp", data_dir)
    chosen = [record for record in records if int(record["task_id"]) in _TEST_SPLIT]
    return Benchmark("mbpp", tuple(map(problem_of, chosen)), FAMILY, origin)


MBPP = {"mbpp": Task(load_mbpp, "python", 500, "CC BY 4.0", _SOURCE)}
