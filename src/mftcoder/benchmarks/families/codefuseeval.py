"""CodeFuseEval (CodeFuse, 2023): completion in six languages, text to code, both also with Chinese instructions, and translation.

Its records are those of HumanEval-X and MBPP with other prompts and, for translation, other tests. A record's Chinese instruction is
one sentence: it becomes a comment above the declaration (`codefuseeval-instruction-LANGUAGE-cn`) or replaces MBPP's sentence. The
prompts of humaneval_python_cn, with Chinese docstrings, lack their final line break, so one is added.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import brace_code, python_code
from mftcoder.benchmarks.answers.brace_code import SYNTAX
from mftcoder.benchmarks.answers.extraction import best_block, cut_at_stop_words
from mftcoder.benchmarks.families import humanevalx, mbpp
from mftcoder.benchmarks.families.humanevalpack import HEADERS, LANGUAGES
from mftcoder.benchmarks.problem import Benchmark, Family, Problem, PromptMode, Task
from mftcoder.benchmarks.sources import HubData, Source
from mftcoder.execution.sandbox import Program

_REPOSITORY = "codefuse-ai/CodeFuseEval"
_TITLES = {"python": "Python", **{name: syntax.title for name, syntax in SYNTAX.items()}}
_TRANSLATIONS = {
    ("cpp", "java"): 594,
    ("cpp", "python"): 601,
    ("java", "cpp"): 589,
    ("java", "python"): 662,
    ("python", "cpp"): 588,
    ("python", "java"): 650,
}
"""(source, target) -> number of problems."""


def _source(folder: str, name: str) -> Source:
    return Source(f"codefuseeval/{folder}/{name}.jsonl", HubData(_REPOSITORY, file=f"{folder}/{name}.jsonl"))


def _completion_source(variant: str) -> Source:
    return _source("code_completion", f"humaneval_{variant.replace('-', '_')}")


def load_completion(variant: str, data_dir: Path | None) -> Benchmark:
    """`codefuseeval-completion-{language}` or `-python-cn`."""
    language = variant.removesuffix("-cn")
    name = f"codefuseeval-completion-{variant}"
    records, origin = _completion_source(variant).records(name, data_dir)
    problems = []
    for record in records:
        prompt = (
            record["prompt"] if record["prompt"].endswith("\n") or language != "python" else record["prompt"] + "\n"
        )
        problems.append(humanevalx.problem_of(record, language, prompt))
    return Benchmark(name, tuple(problems), humanevalx.family(language, "CodeFuseEval"), origin)


def _instruction_prompt(record: Mapping[str, Any], language: str) -> str:
    """The declaration with its Chinese sentence: as a docstring in Python, else as a comment above the function."""
    declaration = record["declaration"]
    sentence = [line.strip() for line in record["prompt_text_chinese"].strip().splitlines()]
    if language == "python":
        signature = declaration.rstrip().rstrip('" \n')  # Python/142 has a stray quote at the end
        return "\n    ".join([signature, '"""', *sentence, '"""\n'])
    name = brace_code.entry_name(declaration, "", language)
    head = brace_code.before_entry(declaration, name, language)
    function = declaration[len(head) :].lstrip("\n")
    if language == "go":  # Go's declarations lack the imports and helpers of the prompt
        head = _LAST_COMMENT.sub("\n", brace_code.before_entry(record["prompt"], name, language))
    indent = function[: len(function) - len(function.lstrip())]
    return head + "".join(f"{indent}// {line}\n" for line in sentence) + function


_LAST_COMMENT = re.compile(r"(?:^(?://.*)?\n)+\Z", re.MULTILINE)


def _ask_in_chinese(problem: Problem, mode: PromptMode) -> str:
    code = problem.prompt.strip()
    if mode != "chat":
        return code
    wish = f"请补全下面的 {_TITLES[problem.language]} 函数，并用一个代码块给出完整的代码。"
    return f"{wish}\n\n```{problem.language}\n{code}\n```"


def load_instructions(language: str, data_dir: Path | None) -> Benchmark:
    """`codefuseeval-instruction-{language}-cn`."""
    name = f"codefuseeval-instruction-{language}-cn"
    records, origin = _completion_source(language).records(name, data_dir)
    problems = [humanevalx.problem_of(record, language, _instruction_prompt(record, language)) for record in records]
    family = replace(humanevalx.family(language, "CodeFuseEval"), prompt=_ask_in_chinese)
    return Benchmark(name, tuple(problems), family, origin)


_TESTS_WISH = {"en": "Your code should satisfy these tests:", "cn": "你的代码必须能够通过这些测试用例:"}
"""Between sentence and tests, without a space, as in CodeFuseEval's own generation script."""


def _text_problem(record: Mapping[str, Any], sentence: str) -> Problem:
    tests = "\n".join([record["test_setup"] or "", *record["test"]]) + "\n"
    entry = mbpp.entry_point_of(record["canonical_solution"], record["test"][0])
    prompt = f'"""\n{sentence}\n{record["test"][0]}\n"""\n'
    fields = {**record, "text": sentence, "test_list": record["test"]}
    return Problem(
        record["task_id"], "python", prompt, tests, entry, mbpp.STOP_WORDS, record["canonical_solution"], fields
    )


def _text_prompt(speech: str, problem: Problem, mode: PromptMode) -> str:
    if mode == "completion" or (mode == "chat" and speech == "en"):
        return mbpp.FAMILY.prompt(problem, mode)
    wish, tests = _TESTS_WISH[speech], "\n".join(problem.fields["test_list"])
    if mode == "instruct":
        return f"{problem.fields['text']}{wish}\n{tests}"
    return f"{problem.fields['text']}\n\n{wish}\n\n```python\n{tests}\n```\n\n请用一个 Python 代码块回答。"


def load_text(speech: str, data_dir: Path | None) -> Benchmark:
    """`codefuseeval-mbpp_x` and `codefuseeval-mbpp_x-cn`: a sentence in English or Chinese, and tests."""
    name, field = (
        ("codefuseeval-mbpp_x", "prompt") if speech == "en" else ("codefuseeval-mbpp_x-cn", "prompt_text_chinese")
    )
    records, origin = _source("nl2code", "mbpp_x").records(name, data_dir)
    family = replace(mbpp.FAMILY, prompt=partial(_text_prompt, speech))
    return Benchmark(name, tuple(_text_problem(record, record[field].strip()) for record in records), family, origin)


def _translation_problem(record: Mapping[str, Any], language: str) -> Problem:
    """The problem with the reference's signature and helpers, because the tests call functions by those names and types."""
    reference, tests = record["canonical_solution"], record["test"]
    if language == "python":
        names = python_code.functions_of(reference)
        entry = brace_code.function_asked_for(names, tests) or names[-1]
        if any(re.search(rf"\b{name}\(", tests) for name in names if name != entry):
            tests = python_code.helpers_of(reference, entry) + tests
        return Problem(
            record["task_id"],
            language,
            record["prompt"],
            tests,
            entry,
            (),
            reference,
            {**record, "declaration": reference},
        )
    entry = brace_code.function_asked_for(brace_code.names_defined(reference, language), tests) or str(
        record["func_title"]
    )
    fields = {**record, "declaration": brace_code.up_to_its_body(reference, entry, language)}
    return Problem(record["task_id"], language, record["prompt"], tests, entry, (), reference, fields)


def _translation_prompt(source: str, problem: Problem, mode: PromptMode) -> str:
    target, code = _TITLES[problem.language], problem.prompt.strip()
    if mode == "completion":
        return f"code translation\n{_TITLES[source]}:\n{code}\n{target}:"
    wish = f"Translate this {_TITLES[source]} function into {target}; the tests call it as {problem.entry_point}."
    return f"{wish} Answer with one code block.\n\n```{source}\n{code}\n```"


def _translation_answer(problem: Problem, text: str, mode: PromptMode) -> str:
    return best_block(text, problem.entry_point) or cut_at_stop_words(text, ("\n```", "\ncode translation"))


def _translation_program(problem: Problem, answer: str) -> Program:
    code = best_block(answer, problem.entry_point) or answer if "```" in answer else answer
    if problem.language == "python":
        return python_code.python_program(problem, python_code.with_import_header(code))
    return brace_code.brace_program(problem, code)


def load_translation(source: str, target: str, data_dir: Path | None) -> Benchmark:
    """`codefuseeval-translation-{source}-{target}`."""
    name = f"codefuseeval-translation-{source}-{target}"
    records, origin = _source("code_trans", f"codeTrans_{source}_to_{target}").records(name, data_dir)
    notes = {"header": HEADERS[target], "test set": "CodeFuseEval", "assembly": "answer, tests"}
    family = Family(partial(_translation_prompt, source), _translation_answer, _translation_program, notes)
    return Benchmark(name, tuple(_translation_problem(record, target) for record in records), family, origin)


_LICENCE = "Apache-2.0"
CODEFUSEEVAL = {
    **{
        f"codefuseeval-completion-{variant}": Task(
            partial(load_completion, variant), variant.removesuffix("-cn"), 164, _LICENCE, _completion_source(variant)
        )
        for variant in (*LANGUAGES, "python-cn")
    },
    **{
        f"codefuseeval-instruction-{language}-cn": Task(
            partial(load_instructions, language), language, 164, _LICENCE, _completion_source(language)
        )
        for language in LANGUAGES
    },
    **{
        f"codefuseeval-mbpp_x{suffix}": Task(
            partial(load_text, speech), "python", 500, _LICENCE, _source("nl2code", "mbpp_x")
        )
        for speech, suffix in (("en", ""), ("cn", "-cn"))
    },
    **{
        f"codefuseeval-translation-{source}-{target}": Task(
            partial(load_translation, source, target),
            target,
            problems,
            _LICENCE,
            _source("code_trans", f"codeTrans_{source}_to_{target}"),
        )
        for (source, target), problems in _TRANSLATIONS.items()
    },
}
