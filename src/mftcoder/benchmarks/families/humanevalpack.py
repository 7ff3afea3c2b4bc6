"""HumanEvalPack (Muennighoff et al. 2023, arXiv:2308.07124): write, repair and explain 164 functions in six languages.

Prompts are exactly those of the reference harness in its `instruct` format. Four kinds of task have tests; explaindescribe only
produces descriptions, from which explainsynthesize then writes code.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import brace_code, python_code
from mftcoder.benchmarks.answers.brace_code import SYNTAX
from mftcoder.benchmarks.answers.extraction import closes_block
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode, Task, task_of
from mftcoder.benchmarks.sources import HubData, Source
from mftcoder.errors import BenchmarkError
from mftcoder.execution.sandbox import Program
from mftcoder.jsonl import read_json

LANGUAGES = ("python", "java", "js", "cpp", "go", "rust")
_KINDS = ("synthesize", "fixtests", "fixdocs", "explaindescribe", "explainsynthesize")
TITLES = {"python": "Python", **{name: syntax.title for name, syntax in SYNTAX.items()}}
_PYTHON_STOP: tuple[str, ...] = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert")

SECONDS = {"go": 20.0, "rust": 30.0}
"""Time limits other than 10 s. Go's is that of the reference harness; debug builds of Rust are slow (Rust/32 runs 100 searches)."""

HEADERS = {
    "python": python_code.HEADER_NOTE,
    "cpp": "the reference harness's includes, precompiled",
    "go": "imports put right: unused ones removed, missing ones of the standard library added",
    "java": "imports of the declaration",
    "js": "none; require('js-md5') is answered by Node's crypto",
    "rust": "uses of the declaration; rand with the 0.4 interface, regex, md5",
}


def problem_of(record: Mapping[str, Any], language: str, kind: str) -> Problem:
    """The problem of a record, with the code that an answer continues as its prompt."""
    base = record["declaration"] if kind in ("fixtests", "explaindescribe", "explainsynthesize") else record["prompt"]
    if base is not record["prompt"] and language == "rust":
        base = "fn main(){}\n" + base  # as in the reference harness
    entry = record["entry_point"]
    if language == "python":
        tests, stop = python_code.helpers_of(record["prompt"], entry) + record["test"], _PYTHON_STOP
    else:
        entry = brace_code.entry_name(record["declaration"], entry, language)
        tests, stop = record["test"], SYNTAX[language].stop
    return Problem(record["task_id"], language, base, tests, entry, stop, record["canonical_solution"], record)


def _request(problem: Problem, kind: str) -> str:
    """The instruction, after the code or text that it is about."""
    record = problem.fields
    if kind == "synthesize":
        return str(record["instruction"]).strip()
    if kind == "explaindescribe":
        length = len(record["docstring"])
        wish = f"Provide a concise natural language description of the code using at most {length} characters."
        return f"{problem.prompt}{record['canonical_solution']}\n{wish}"
    if kind == "explainsynthesize":
        if "description" not in record:
            raise BenchmarkError(
                "humanevalexplainsynthesize: has no prompt before `mft generate` read the descriptions"
            )
        return f"{record['description']}\nWrite functional code in {TITLES[problem.language]} according to the description."
    code = problem.prompt + record["buggy_solution"]
    tests = f"\n{record['test']}" if kind == "fixtests" else ""
    return f"{code}{tests}\nFix bugs in {record['entry_point']}."


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
    """True if the function has ended: an unindented line in Python, the end of the block elsewhere. `text` is complete lines."""
    if problem.language == "python":
        return python_code.cut_at_first_column(text) != text
    return closes_block(text, SYNTAX[problem.language].open_blocks, single_quotes=problem.language == "js")


def _description(problem: Problem, text: str) -> str:
    """The description in a completion: at most as long as the docstring, without lines copied from the solution."""
    description = text.strip()[: len(problem.fields["docstring"])].rstrip()
    for line in map(str.strip, problem.reference.split("\n")):
        if len(line) > 20:
            description = description.replace(line, "")
    return description


def program(problem: Problem, answer: str) -> Program:
    """The program of an answer in any of the six languages."""
    if problem.language != "python":
        return brace_code.brace_program(problem, brace_code.assemble(problem, answer))
    code = python_code.assemble(problem.prompt, answer, problem.entry_point)
    return python_code.python_program(problem, python_code.with_import_header(code))


def _program(kind: str, problem: Problem, answer: str) -> Program:
    if kind == "explaindescribe":
        raise BenchmarkError(
            "humanevalexplaindescribe has no tests. Generate humanevalexplainsynthesize from its descriptions and score that"
        )
    return program(problem, answer)


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


def described_by(name: str) -> str | None:
    """The explaindescribe benchmark whose answers are the questions of this one; None for all but explainsynthesize."""
    kind, _, language = name.partition("-")
    return f"humanevalexplaindescribe-{language}" if kind == "humanevalexplainsynthesize" else None


def with_descriptions(benchmark: Benchmark, path: Path) -> Benchmark:
    """An explainsynthesize benchmark with the first description of each problem from an explaindescribe generations file."""
    if not path.is_file():
        raise BenchmarkError(
            f"{benchmark.name}: needs descriptions, and there is no {path}. Generate {described_by(benchmark.name)} first, with the "
            "same --out and --name"
        )
    content, wanted = read_json(path), len(benchmark.problems)
    lists = content if isinstance(content, list) else [None]
    if not all(isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in lists):
        raise BenchmarkError(f"{path}: expected a list of lists of descriptions")
    if len(content) < wanted:
        raise BenchmarkError(f"{path}: has descriptions of {len(content)} problems, and {wanted} are asked for")
    problems = tuple(
        replace(problem, fields={**problem.fields, "description": texts[0]})
        for problem, texts in zip(benchmark.problems, content, strict=False)
    )
    digest = hashlib.sha256("\0".join(texts[0] for texts in content[:wanted]).encode("utf-8", "replace")).hexdigest()
    return replace(benchmark, problems=problems, source=f"{benchmark.source}, descriptions {digest[:16]}")


def _task(kind: str, language: str) -> tuple[str, Task]:
    problem = partial(problem_of, language=language, kind=kind)
    name = f"humaneval{kind}-{language}"
    return task_of(name, _source(language), problem, _family(kind, language), language, 164, "MIT")


HUMANEVALPACK = dict(_task(kind, language) for kind in _KINDS for language in LANGUAGES)
