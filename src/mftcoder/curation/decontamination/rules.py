"""The step `decontaminate`: an index over the problems of the exams, and what a record shares with it.

A hit names the problem, the rule, and the overlap as the measured value.
"""

import ast
import keyword
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mftcoder.curation.decontamination.examples import example_hashes
from mftcoder.curation.decontamination.exams import DecontaminateConfig, ExamProblem
from mftcoder.curation.duplicates.ngrams import core_words, ngram_hashes, words_of
from mftcoder.curation.duplicates.tokens import python_tokens
from mftcoder.curation.example import MAX_PARSED, Drop, Example, fenced_blocks, parse_python


class NgramRule:
    """A hit shares a run of `length` words with a problem; the value is the share of the problem's runs that the record has."""

    def __init__(self, problems: Sequence[ExamProblem], length: int, ignored: Sequence[str]):
        self.length = length
        left_out = {int(value) for text in ignored for value in self._hashes(text)}
        self.holders: dict[int, list[int]] = defaultdict(list)
        self.sizes: list[int] = []
        self.names = [problem.name for problem in problems]
        for number, problem in enumerate(problems):
            found = {int(value) for text in problem.texts for value in self._hashes(text)} - left_out
            self.sizes.append(len(found))
            for value in found:
                self.holders[value].append(number)
        self.known = np.sort(np.fromiter(self.holders, np.uint64, len(self.holders)))

    def _hashes(self, text: str) -> np.ndarray:
        lowered = text.lower()
        hashes = ngram_hashes([lowered], self.length)[0]
        is_run = len(hashes) > 1 or len(words_of(lowered)) >= self.length  # a single run may be a shorter text
        return hashes if is_run else hashes[:0]

    def _known_places(self, hashes: np.ndarray) -> np.ndarray:
        """Where a hash is one of a problem's. (isin would sort all of the problems' hashes for each record.)"""
        if not len(self.known):
            return np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.known, hashes), len(self.known) - 1)
        return np.flatnonzero(self.known[places] == hashes)

    def check(self, example: Example) -> Drop | None:
        """The problem with the most shared runs, and one of these."""
        shared: Counter[int] = Counter()
        gram = ""
        for text in (example.question, example.answer):
            hashes = self._hashes(text)
            hits = self._known_places(hashes)
            for value in {int(hashes[place]) for place in hits}:
                shared.update(self.holders[value])
            if len(hits) and not gram:
                words = words_of(text.lower())
                gram = " ".join(words[hits[0] : hits[0] + self.length])
        if not shared:
            return None
        problem = max(shared, key=lambda number: (shared[number] / self.sizes[number], -number))
        overlap = shared[problem] / self.sizes[problem]
        return Drop("exam_ngram", round(overlap, 4), {"problem": self.names[problem], "gram": gram})


SMALL = 13
"""A function of fewer tokens may be equal to an unrelated one. `def f(a, b): return a + b` has 10."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function's name, the hash of its code without names, docstrings, annotations and layout, and the number of its tokens."""

    name: str
    hash: int
    tokens: int


def function_fingerprints(tree: ast.Module) -> Iterator[Function]:
    """Each function of a module, methods and inner functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            tokens = python_tokens(node)
            yield Function(node.name, tokens.fingerprint(), len(tokens.hashes))


class CodeRule:
    """A hit has a Python function that is equal to one of a problem but for names, docstring and annotations; the value is 1.

    A small function is a hit only beside a witness in the text: an example of the problem, or half of its description's core words.
    """

    def __init__(self, problems: Sequence[ExamProblem]):
        self.problems = problems
        self.holders: dict[int, list[int]] = defaultdict(list)
        for number, problem in enumerate(problems):
            for value in _asked_functions(problem):
                self.holders[value].append(number)

    def check(self, example: Example) -> Drop | None:
        """The first problem that the record has a function of."""
        for code in _codes(example):
            tree = parse_python(code) if len(code) <= MAX_PARSED and "def " in code else None
            for function in function_fingerprints(tree) if tree else ():
                for number in self.holders.get(function.hash, ()):
                    witness = {} if function.tokens >= SMALL else _witness(self.problems[number], example)
                    if witness is not None:
                        return Drop("exam_code", 1.0, {"problem": self.problems[number].name, **witness})
        return None


def _asked_functions(problem: ExamProblem) -> Iterator[int]:
    """The fingerprints of the function that the problem asks for. Its helpers are often boilerplate: they count where it is small itself."""
    tree = parse_python(problem.code) if problem.code else None
    found = list(function_fingerprints(tree)) if tree else []
    asked = [function for function in found if function.name == problem.entry_point]
    is_small = all(function.tokens < SMALL for function in asked)
    return (function.hash for function in (found if is_small else asked))


_WITNESS_SHARE = 0.5
_KEYWORDS = frozenset(keyword.kwlist)
"""No evidence: the code of a record has them anyway."""


def _witness(problem: ExamProblem, example: Example) -> dict[str, Any] | None:
    """What of a problem's text a record has, if that is enough beside the same small function."""
    said = f"{example.question}\n{example.answer}"
    examples = _examples_of(problem) & example_hashes(said)
    words = core_words(problem.description) - _KEYWORDS
    share = len(words & core_words(said)) / max(1, len(words))
    if not examples and share < _WITNESS_SHARE:
        return None
    return {"examples": len(examples), "core_words": round(share, 4)}


@lru_cache(maxsize=1024)
def _examples_of(problem: ExamProblem) -> frozenset[int]:
    return example_hashes("\n".join(problem.texts))


def _codes(example: Example) -> Iterator[str]:
    """What may be Python code: fenced blocks, and without them the answer, and a question that the answer continues."""
    yield from (block.code for block in example.blocks)
    if not example.blocks:
        yield example.answer
    if example.conversation.is_text:
        return
    asked = fenced_blocks(example.question)
    yield from (block.code for block in asked)
    if not asked and not example.blocks and "def " in example.question:
        yield example.question.rstrip() + "\n" + example.answer


class FunctionNameRule:
    """Published: a hit has the name of a problem's function as a word; the value is how often."""

    def __init__(self, problems: Sequence[ExamProblem]):
        self.holders: dict[str, str] = {}
        for problem in problems:
            if problem.entry_point:
                self.holders.setdefault(problem.entry_point, problem.name)

    def check(self, example: Example) -> Drop | None:
        """The first name in the record's text."""
        words = Counter(re.findall(r"\w+", f"{example.question}\n{example.answer}"))
        for word, count in words.items():
            if word in self.holders:
                return Drop("exam_function_name", count, {"problem": self.holders[word], "name": word})
        return None


class CoreWordRule:
    """Published: a hit's question has more than a share of the core words of a problem's description; the value is the share."""

    def __init__(self, problems: Sequence[ExamProblem], share: float):
        self.share = share
        self.problems = [(problem.name, words) for problem in problems if (words := core_words(problem.description))]

    def check(self, example: Example) -> Drop | None:
        """The problem with the largest share."""
        asked = core_words(example.question or example.answer)
        shares = [(len(words & asked) / len(words), name) for name, words in self.problems]
        value, name = max(shares, default=(0.0, ""), key=lambda pair: pair[0])
        return Drop("exam_core_words", round(value, 4), {"problem": name}) if value > self.share else None


class Decontamination:
    """The step: drops a record that one of its rules hits."""

    takes_whole_blocks = False

    def __init__(self, config: DecontaminateConfig, problems: Sequence[ExamProblem]):
        self.rules: list[NgramRule | CodeRule | FunctionNameRule | CoreWordRule]
        if config.rules == "published":
            self.rules = [FunctionNameRule(problems), CoreWordRule(problems, config.core_word_share)]
        else:
            self.rules = [NgramRule(problems, config.ngram, config.ignore), CodeRule(problems)]

    def check_all(self, examples: Sequence[Example]) -> list[Drop | None]:
        return [self.check(example) for example in examples]

    def check(self, example: Example) -> Drop | None:
        """What the first rule that hits has found."""
        return next((drop for rule in self.rules if (drop := rule.check(example)) is not None), None)
