"""Answers in Python: from a problem and an answer to a program with the roles `candidate`, `tests` and `entry_point`.

The tests get the prompt's own helpers (imports, other functions), so that nothing that they need comes from the candidate.
"""

import ast
import functools
import itertools
import re
import warnings
from dataclasses import replace
from typing import Literal

from mftcoder.benchmarks.answers.extraction import best_block, cut_at_stop_words
from mftcoder.benchmarks.problem import Benchmark, Problem, PromptMode
from mftcoder.errors import BenchmarkError
from mftcoder.execution.sandbox import Program

STOP_WORDS: tuple[str, ...] = ("\nclass ", "\ndef ", "\n#", "\n@", "\nprint(", "\nif __name__", "\n```", "\nassert ")
"""Where the completion of a function body ends: at the next unindented statement."""

# The import header of the reference harness for HumanEvalPack. The lines for numpy are added only if the code mentions it, because
# importing numpy takes longer than most programs.
IMPORT_HEADER = (
    "import math, re, sys, copy, datetime, itertools, collections, heapq, statistics, functools, hashlib, string\n"
    "from typing import *\nfrom collections import *\n"
)

HEADER_NOTE = "the reference harness's imports (numpy where the code names it)"
"""The name of this header in a result."""

_NUMPY = re.compile(r"\b(?:np|numpy)\b")
_FUTURE = re.compile(r"^from __future__ import .*", re.MULTILINE)


def with_import_header(code: str) -> str:
    """The header, then `code`. A `from __future__` line stays first, as Python requires."""
    numpy = "import numpy\nimport numpy as np\n" if _NUMPY.search(code) else ""
    future = "".join(f"{line}\n" for line in _FUTURE.findall(code))
    return future + IMPORT_HEADER + numpy + _FUTURE.sub("", code)


def is_valid(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def assemble(prompt: str, answer: str, entry_point: str) -> str:
    """The candidate's program: the prompt and the answer.

    A completion or a whole function comes after the prompt, as in openai/human-eval (a whole function then replaces the prompt's stub
    and finds its imports). An answer that repeats the prompt is taken alone. Fences are removed only if the text is not valid Python
    with them. Nothing else is repaired, so a wrong answer stays wrong.
    """
    if answer.startswith(prompt.strip()):
        return answer
    whole = prompt + answer
    if "```" not in answer or is_valid(whole):
        return whole
    before = answer.partition("```")[0]
    if answer.count("```") == 1 and before.strip() and is_valid(prompt + before):
        return prompt + before  # the model continued inside the prompt's fence and closed it
    block = best_block(answer, entry_point) or before
    separate = block if block.startswith(prompt.strip()) else prompt + "\n" + block
    return separate if is_valid(separate) or not is_valid(block) else block


def answer_in(problem: Problem, text: str, mode: PromptMode) -> str:
    """The answer in a completion: in chat mode the fenced code, else the prompt and the text up to a stop word."""
    if mode == "chat":
        block = best_block(text, problem.entry_point)
        return text if block is None else block
    return problem.prompt + cut_at_stop_words(text, problem.stop)


def cut_at_first_column(body: str) -> str:
    """The lines of a function body up to the first unindented one."""
    kept = itertools.takewhile(lambda line: not line.strip() or line[0] in " \t", body.split("\n"))
    return "\n".join(kept)


def functions_of(code: str) -> list[str]:
    """The names of its unindented functions, in order."""
    return re.findall(r"^def\s+(\w+)", code, re.MULTILINE)


@functools.lru_cache(maxsize=2048)
def helpers_of(prompt: str, entry_point: str) -> str:
    """The prompt's imports and functions except the entry point: tests may use them."""
    for text in (prompt, prompt + "\n    pass\n", prompt + "pass\n"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except SyntaxError:
            continue
        tree.body = [node for node in tree.body if getattr(node, "name", None) != entry_point]
        return ast.unparse(tree) + "\n" if tree.body else ""
    return ""


def python_program(problem: Problem, candidate: str) -> Program:
    """The candidate's program with the problem's tests."""
    return Program("python", {"candidate": candidate, "tests": problem.tests, "entry_point": problem.entry_point})


def with_imports(benchmark: Benchmark, imports: Literal["none", "reference"]) -> Benchmark:
    """The benchmark with the reference harness's imports before each candidate, or with none.

    BenchmarkError if the benchmark is not in Python or has a header of its own, which is then part of the benchmark.
    """
    family, header = benchmark.family, benchmark.family.notes["header"]
    if header != "none" or any(problem.language != "python" for problem in benchmark.problems):
        raise BenchmarkError(
            f"--imports {imports}: {benchmark.name} has a header of its own ({header}). Leave --imports out"
        )
    if imports == "none":
        return benchmark

    def program(problem: Problem, answer: str) -> Program:
        bare = family.program(problem, answer)
        return Program(bare.language, {**bare.files, "candidate": with_import_header(bare.files["candidate"])})

    notes = {**family.notes, "header": HEADER_NOTE}
    return replace(benchmark, family=replace(family, program=program, notes=notes))
