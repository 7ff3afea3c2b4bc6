"""`comment`: a docstring and comments for a function. The program stays the same, whatever the model writes."""

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mftcoder.assistant.checks.comments import (
    added_examples,
    reads_docstrings,
    refuse_comments_behind,
    refuse_other_code,
    words_of_comments,
)
from mftcoder.assistant.checks.patches import patch_of
from mftcoder.assistant.checks.replies import checked_size, code_of, python_words, refuse_foreign_letters
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText, functions_in
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, Refusal, RefusedAnswer, conversation, until_accepted
from mftcoder.assistant.suites.trials import Trials
from mftcoder.curation.example import fenced, parse_python
from mftcoder.curation.mining.functions import functions_of
from mftcoder.curation.mining.languages.grammars import LANGUAGES
from mftcoder.errors import NoAnswerAcceptedError
from mftcoder.registry import words

_SYSTEM = "You document {title} code. You never change the code itself."
_TASK = (
    "Write this {title} function again with a {doc} that says what it does, its parameters and what it returns, and with short comments "
    "where a step is hard to see. Do not change the code. Answer with one code block."
)
_COMMENTS_ONLY = (
    "Write this {title} function again with short comments where a step is hard to see. Do not change the code or its {doc}, and add none: "
    "the program reads it. Answer with one code block."
)
_SENTENCES = "Say in one or two short sentences what this Python function does, for its docstring. Write no code."
_MOST_SENTENCE_LINES = 12
_NO_READERS = words(
    "staticmethod classmethod property setter getter deleter overload override final abstractmethod cache lru_cache "
    "cached_property contextmanager asynccontextmanager wraps total_ordering singledispatch register fixture "
    "parametrize skip skipif xfail"
)
"""Decorators that leave a docstring alone, by the last part of their names."""


def comment(model: Model, file: SourceFile, function: FunctionText | None, trials: Trials, *, rounds: int) -> Proposal:
    """Comments for one function, or for each function of a file in turn; functions without an accepted answer stay as they are."""
    if function:
        new, refused = _commented(model, function, trials, rounds)
        return _proposal(file, new, (), refused)
    now = file
    notes: list[str] = []
    refusals: list[Refusal] = []
    functions = functions_in(file)
    for number, one in enumerate(functions):
        try:  # counted from the end, which has not changed yet
            new, refused = _commented(model, functions_in(now)[number - len(functions)], trials, rounds)
        except NoAnswerAcceptedError as error:
            notes.append(f"{one.name}: no answer was accepted: {error.problems[-1].split(': ', 2)[-1]}")
        else:
            refusals += refused
            now = SourceFile(file.path, file.name, file.language, new, file.bytes_of(new))
    if now.text == file.text:
        raise NoAnswerAcceptedError(*(notes or [f"{file.name}: has no function"]))
    return _proposal(file, now.text, tuple(notes), tuple(refusals))


def _proposal(file: SourceFile, new: str, notes: tuple[str, ...], refusals: tuple[Refusal, ...]) -> Proposal:
    patch = patch_of(file, new)
    shown = tuple(_shown_by_decorators(file.text, new)) if file.language == "python" else ()
    return Proposal("comment", file, patch=patch, new_text=new, notes=(*notes, *shown), refusals=refusals)


def _shown_by_decorators(before: str, after: str) -> Iterator[str]:
    """A note for each function with another docstring and a decorator that may show it: the help text of a command, a web API."""
    old, new = ([node for _, node in functions_of(ast.parse(code))] for code in (before, after))
    for one, other in zip(old, new, strict=True):
        names = [ast.unparse(node.func if isinstance(node, ast.Call) else node) for node in other.decorator_list]
        unknown = [name for name in names if name.split(".")[-1] not in _NO_READERS]
        if unknown and ast.get_docstring(one) != ast.get_docstring(other):
            yield f"{other.name}: the decorator @{unknown[0]} may show this docstring to users"


def _commented(model: Model, function: FunctionText, trials: Trials, rounds: int) -> tuple[str, tuple[Refusal, ...]]:
    """The file with comments for one function. The last attempt asks for sentences only, which small models can write."""
    file, what = function.file, function.place
    grammar = LANGUAGES[file.language]
    names = {"title": grammar.title, "doc": grammar.doc_name}
    code = fenced(function.text, file.language)

    def judge(reply: Written, *, sentences: bool = False) -> str:
        return checked_comments(function, _as_docstring(reply) if sentences else reply, trials)

    reads = file.language == "python" and reads_docstrings(file.text)
    task = _COMMENTS_ONLY if reads else _TASK
    messages = conversation(_SYSTEM.format(**names), task.format(**names), code)
    is_bare = file.language == "python" and not reads and not _docstring_of(function)
    if rounds == 1 or not is_bare:
        return until_accepted(model, messages, judge, rounds=rounds, what=what)
    try:
        return until_accepted(model, messages, judge, rounds=rounds - 1, what=what)
    except NoAnswerAcceptedError as error:
        sentences = conversation(_SYSTEM.format(**names), _SENTENCES, code)
        try:
            new, _ = until_accepted(model, sentences, partial(judge, sentences=True), rounds=1, what=what)
        except NoAnswerAcceptedError as last:
            raise NoAnswerAcceptedError(
                *error.problems, *(line.replace("answer 1:", f"answer {rounds}:") for line in last.problems)
            ) from last
        return new, error.refusals


def _docstring_of(function: FunctionText) -> str | None:
    node = ast.parse(function.text).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return ast.get_docstring(node)


def _as_docstring(reply: Written) -> Written:
    """Sentences as the code block of a docstring; a reply with a code block as it is."""
    text = checked_size(reply)
    if "```" in text:
        return reply
    lines = [line.rstrip() for line in text.strip().strip("\"'").splitlines()]
    if len(lines) > _MOST_SENTENCE_LINES or any(mark in text for mark in ('"""', "\\")):
        raise RefusedAnswer("no_docstring", "The answer is not a few plain sentences.")
    wrapped = [part for line in lines for part in textwrap.wrap(line, 100) or [""]]
    end = "\n" if len(wrapped) > 1 else ""
    return _Sentences(fenced('"""' + "\n".join(wrapped) + end + '"""'))


@dataclass(frozen=True)
class _Sentences:
    text: str
    is_cut: bool = False


def checked_comments(function: FunctionText, reply: Written, trials: Trials) -> str:
    """The whole file with the comments of a reply. RefusedAnswer if anything else changes."""
    file = function.file
    code, _ = code_of(reply, file.language, file.text)
    if file.language == "python":
        code = _as_function(function, code)
        refuse_foreign_letters(python_words(code), file.text)
    else:
        refuse_comments_behind(function.placed(code), file.language, function.first, function.first + code.count("\n"))
    new = function.placed(code)
    refuse_other_code(file.content, file.bytes_of(new), file.language)
    if words_of_comments(file.content, file.language) == words_of_comments(file.bytes_of(new), file.language):
        raise RefusedAnswer("no_change", "The answer adds no comment.")
    if file.language == "python" and added_examples(file.text, new):
        _refuse_wrong_examples(function, new, trials)
    return new


def _as_function(function: FunctionText, code: str) -> str:
    """The function with a docstring, where the answer is a docstring alone; any other answer as it is."""
    tree = parse_python(code)
    [statement] = tree.body if tree is not None and len(tree.body) == 1 else [None]
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return code
    own = ast.parse(function.text).body[0]
    assert isinstance(own, ast.FunctionDef | ast.AsyncFunctionDef)
    if not isinstance(statement.value.value, str) or ast.get_docstring(own) is not None:
        return code
    lines, row = function.text.splitlines(True), own.body[0].lineno - 1
    if row < own.lineno:
        return code
    indent = lines[row][: len(lines[row]) - len(lines[row].lstrip())]
    text = "".join(indent + line if line.strip() else line for line in code.strip("\n").splitlines(True))
    return "".join([*lines[:row], f"{text}\n", *lines[row:]])


def _refuse_wrong_examples(function: FunctionText, new: str, trials: Trials) -> None:
    """An example in a docstring is a test: a new one must hold."""
    documented = [
        (node.name, ast.get_docstring(node) or "")
        for node in ast.walk(ast.parse(new))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function.name.rpartition(".")[2]
    ]
    verdict = trials.doctests(new, [pair for pair in documented if ">>>" in pair[1]])
    if verdict.outcome != "passed" or "doctests" not in verdict.checks:
        raise RefusedAnswer(
            "wrong_example",
            f"An example in the docstring does not hold when it is run ({verdict.detail or verdict.why}). Leave the examples out.",
        )
