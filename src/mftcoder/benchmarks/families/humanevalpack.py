"""HumanEvalPack (Muennighoff et al. 2023, arXiv:2308.07124): write, repair and explain 164 functions in six languages.

Prompts are those of the reference harness's `instruct` format, to the character. Four kinds of task are judged by tests;
explaindescribe only produces texts, which explainsynthesize then turns into code.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import brace_code, python_code
from mftcoder.benchmarks.answers.brace_code import SYNTAX
from mftcoder.benchmarks.answers.extraction import closes_block
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode
from mftcoder.benchmarks.sources import HubData, Source
from mftcoder.benchmarks.task import Task
from mftcoder.errors import BenchmarkError
from mftcoder.execution.sandbox import Program
from mftcoder.jsonl import read_json

LANGUAGES = ("python", "java", "js", "cpp", "go", "rust")
_KINDS = ("synthesize", "fixtests", "fixdocs", "explaindescribe", "explainsynthesize")
_TITLES = {"python": "Python", **{name: syntax.title for name, syntax in SYNTAX.items()}}
_PYTHON_STOP: tuple[str, ...] = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert")

SECONDS = {"go": 20.0, "rust": 30.0}
"""Time limits other than 10 s: Go's are the reference harness's, and debug builds of Rust are slow (Rust/32 runs 100 searches)."""

HEADERS = {
    "python": python_code.HEADER_NOTE,
    "cpp": "the reference harness's includes, precompiled",
    "go": "imports put right: unused ones removed, missing ones of the standard library added",
    "java": "imports of the declaration",
    "js": "none; require('js-md5') is answered by Node's crypto",
    "rust": "uses of the declaration; rand with the 0.4 interface, regex, md5",
}


def problem_of(row: Mapping[str, Any], language: str, kind: str) -> Problem:
    """A row, with the code that an answer goes on from as its prompt."""
    base = row["declaration"] if kind in ("fixtests", "explaindescribe", "explainsynthesize") else row["prompt"]
    if base is not row["prompt"] and language == "rust":
        base = "fn main(){}\n" + base  # as the reference harness
    entry = row["entry_point"]
    if language == "python":
        tests, stop = python_code.helpers_of(row["prompt"], entry) + row["test"], _PYTHON_STOP
    else:
        entry = brace_code.entry_name(row["declaration"], entry, language)
        tests, stop = row["test"], SYNTAX[language].stop
    return Problem(row["task_id"], language, base, tests, entry, stop, row["canonical_solution"], row)


def _request(problem: Problem, kind: str) -> str:
    """The instruction, with what it is about before it."""
    row = problem.fields
    if kind == "synthesize":
        return str(row["instruction"]).strip()
    if kind == "explaindescribe":
        length = len(row["docstring"])
        wish = f"Provide a concise natural language description of the code using at most {length} characters."
        return f"{problem.prompt}{row['canonical_solution']}\n{wish}"
    if kind == "explainsynthesize":
        if "description" not in row:
            raise BenchmarkError("humanevalexplainsynthesize: give the descriptions that explaindescribe has produced")
        return (
            f"{row['description']}\nWrite functional code in {_TITLES[problem.language]} according to the description."
        )
    code = problem.prompt + row["buggy_solution"]
    tests = f"\n{row['test']}" if kind == "fixtests" else ""
    return f"{code}{tests}\nFix bugs in {row['entry_point']}."


def _prompt(kind: str, problem: Problem, mode: PromptMode) -> str:
    if mode == "completion" and kind == "synthesize":
        return problem.prompt.strip()
    request = _request(problem, kind)
    if kind == "explaindescribe":
        return request.strip()
    if mode == "chat":
        language = problem.language
        return f"{request}\n\nAnswer with the whole function in one code block.\n\n```{language}\n{problem.prompt.strip()}\n```"
    return f"{request}\n\n{problem.prompt}".strip()


def _extract(kind: str, problem: Problem, text: str, mode: PromptMode) -> str:
    if kind == "explaindescribe":
        return _description(problem, text)
    if problem.language != "python":
        return brace_code.answer_in(problem, text, mode)
    if mode == "chat":
        return python_code.answer_in(problem, text, mode)
    return problem.prompt.rstrip() + python_code.cut_at_first_column(text.rstrip())


def _is_whole(problem: Problem, text: str) -> bool:
    """Whether the function has ended: something stands in Python's first column, or the block is closed. `text` is whole lines."""
    if problem.language == "python":
        return python_code.cut_at_first_column(text) != text
    return closes_block(text, SYNTAX[problem.language].open_blocks, single_quotes=problem.language == "js")


def _description(problem: Problem, text: str) -> str:
    """At most as long as the docstring, without lines copied from the solution."""
    description = text.strip()[: len(problem.fields["docstring"])].rstrip()
    for line in map(str.strip, problem.reference.split("\n")):
        if len(line) > 20:
            description = description.replace(line, "")
    return description


def _program(kind: str, problem: Problem, answer: str) -> Program:
    if kind == "explaindescribe":
        raise BenchmarkError(
            "humanevalexplaindescribe has no tests: generate humanevalexplainsynthesize from its descriptions, and score that"
        )
    if problem.language != "python":
        return brace_code.brace_program(problem, brace_code.assemble(problem, answer))
    code = python_code.assemble(problem.prompt, answer, problem.entry_point)
    return python_code.python_program(problem, python_code.with_import_header(code))


def _family(kind: str, language: str) -> Family:
    notes = {
        "header": HEADERS[language],
        "test set": "HumanEvalPack",
        "assembly": "prompt or declaration, answer, tests",
    }
    return Family(
        partial(_prompt, kind),
        partial(_extract, kind),
        partial(_program, kind),
        notes,
        SECONDS.get(language, 10.0),
        is_whole=None if kind == "explaindescribe" else _is_whole,
    )


def _source(language: str) -> Source:
    return Source(f"humanevalpack/{language}.jsonl", HubData("bigcode/humanevalpack", language))


def load(kind: str, language: str, data_dir: Path | None) -> Benchmark:
    """`humaneval{kind}-{language}`."""
    name = f"humaneval{kind}-{language}"
    rows, origin = _source(language).rows(name, data_dir)
    return Benchmark(name, tuple(problem_of(row, language, kind) for row in rows), _family(kind, language), origin)


def with_descriptions(benchmark: Benchmark, path: Path) -> Benchmark:
    """An explainsynthesize benchmark with the first description of each problem from an explaindescribe generations file."""
    content = read_json(path)
    if not isinstance(content, list) or len(content) < len(benchmark.problems):
        raise BenchmarkError(f"{path}: a list of {len(benchmark.problems)} lists of descriptions is expected")
    problems = tuple(
        replace(problem, fields={**problem.fields, "description": texts[0] if texts else ""})
        for problem, texts in zip(benchmark.problems, content, strict=False)
    )
    return replace(benchmark, problems=problems)


HUMANEVALPACK = {
    f"humaneval{kind}-{language}": Task(partial(load, kind, language), language, 164, "MIT", _source(language))
    for kind in _KINDS
    for language in LANGUAGES
}
