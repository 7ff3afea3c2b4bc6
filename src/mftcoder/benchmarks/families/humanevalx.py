"""HumanEval-X (Zheng et al. 2023, arXiv:2303.17568): write or translate 164 functions in six languages.

The task of `humanevalx-{language}` is to write a function. For `humanevalx-{source}-{target}` the source's declaration and solution
are given, and the target's declaration is completed. CodeFuseEval's code completion has the same records with other prompts.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import brace_code, python_code
from mftcoder.benchmarks.answers.brace_code import SYNTAX
from mftcoder.benchmarks.families.humanevalpack import HEADERS, LANGUAGES, SECONDS, TITLES, program
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode, Task, task_of
from mftcoder.benchmarks.sources import HubData, Source


def problem_of(record: Mapping[str, Any], language: str, prompt: str) -> Problem:
    """The problem of a record. Records name no entry point: it is the last function of the declaration."""
    declaration = record["declaration"]
    if language == "rust":
        return _rust_problem(record, prompt)
    if language == "python":
        entry = (python_code.functions_of(declaration) or [""])[-1]
        tests, stop = python_code.helpers_of(declaration, entry) + record["test"], python_code.STOP_WORDS
    else:
        entry = brace_code.entry_name(declaration, "", language)
        tests, stop = record["test"], SYNTAX[language].stop
    return Problem(record["task_id"], language, prompt, tests, entry, stop, record["canonical_solution"], record)


def _rust_problem(record: Mapping[str, Any], prompt: str) -> Problem:
    """The problem of a record in Rust: its prompt may lack the declaration, its tests may be commented out, and its solution may
    define the function under test or a helper.
    """
    declaration, solution = record["declaration"], record["canonical_solution"]
    tests = record["test"].strip().removeprefix("/*").removesuffix("*/")
    declared = brace_code.names_defined(declaration, "rust")
    if declared[-1] not in brace_code.names_defined(prompt, "rust"):
        prompt = f"{prompt}{declaration}"
    defined = [*declared, *brace_code.names_defined(solution, "rust")]
    entry = brace_code.function_asked_for(defined, tests) or declared[-1]
    if entry not in declared or any(re.search(rf"\b{name}\(", tests) for name in defined if name != entry):
        declaration = brace_code.up_to_its_body(declaration + solution, entry, "rust")
    fields = {**record, "declaration": declaration}
    return Problem(record["task_id"], "rust", prompt, tests, entry, SYNTAX["rust"].stop, solution, fields)


def _prompt(problem: Problem, mode: PromptMode) -> str:
    source = problem.fields.get("source", "")
    if mode != "chat":
        return f"{source}{problem.prompt}".strip()
    wish = "Translate" if source else "Complete"
    return f"{wish} this, and answer with the whole function in one code block.\n\n{source}{problem.prompt}".rstrip()


def _extract(problem: Problem, text: str, mode: PromptMode) -> str:
    module = python_code if problem.language == "python" else brace_code
    return module.answer_in(problem, text, mode)


def family(language: str, test_set: str) -> Family:
    """The family of all records in this format."""
    notes = {"header": HEADERS[language], "test set": test_set, "assembly": "prompt, answer, tests"}
    return Family(_prompt, _extract, program, notes, SECONDS.get(language, 10.0))


def _source(language: str) -> Source:
    hub = HubData("THUDM/humaneval-x", file=f"data/{language}/data/humaneval.jsonl")
    return Source(f"humanevalx/{language}.jsonl", hub)


def _writing(language: str) -> tuple[str, Task]:
    def problem(record: Mapping[str, Any]) -> Problem:
        return problem_of(record, language, record["prompt"])

    family_ = family(language, "HumanEval-X")
    return task_of(f"humanevalx-{language}", _source(language), problem, family_, language, 164, "Apache-2.0")


def load_translation(source: str, target: str, data_dir: Path | None) -> Benchmark:
    """`humanevalx-{source}-{target}`."""
    name = f"humanevalx-{source}-{target}"
    given, _ = _source(source).records(name, data_dir)
    wanted, origin = _source(target).records(name, data_dir)
    problems = []
    for before, record in zip(given, wanted, strict=True):
        text = f"code translation\n{TITLES[source]}:\n{before['declaration']}{before['canonical_solution']}\n{TITLES[target]}:\n"
        problems.append(problem_of({**record, "source": text}, target, record["declaration"]))
    return Benchmark(name, tuple(problems), family(target, "HumanEval-X"), origin)


HUMANEVALX = {
    **dict(map(_writing, LANGUAGES)),
    **{
        f"humanevalx-{source}-{target}": Task(
            partial(load_translation, source, target), target, 164, "Apache-2.0", _source(target)
        )
        for source in LANGUAGES
        for target in LANGUAGES
        if source != target
    },
}
