"""Find the function that each test is about, by names only: `test_shlex.py` tests `shlex.py`, `test_quote` tests `quote`."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mftcoder.curation.mining.functions import FunctionNode, MinedFunction, functions_of, text_of
from mftcoder.curation.mining.sources import SourceModule

MAX_TEST_CHARS = 1100
MIN_NAME_CHARS = 4  # a name like `get` or `add` does not show which function is meant


@dataclass(frozen=True)
class TestedFunction:
    """A function and one test of it."""

    __test__ = False  # pytest would take a class named Test... for a test

    function: MinedFunction
    test: str
    test_module: str
    line: int  # of the test, in its module

    @property
    def origin(self) -> str:
        """The place of the test: `test/test_shlex.py:330`."""
        return f"{self.test_module}:{self.line}"


Index = dict[str, dict[str, MinedFunction]]


def index_by_stem(functions: Iterable[MinedFunction]) -> Index:
    """`stem or package -> name -> function`, for the functions that are the only ones of their name there."""
    found: dict[str, dict[str, list[MinedFunction]]] = defaultdict(lambda: defaultdict(list))
    for function in functions:
        parts = function.module.removesuffix(".py").split("/")
        for stem in {part for part in parts[-2:] if part != "__init__"}:
            found[stem][function.name].append(function)
    return {
        stem: {name: several[0] for name, several in names.items() if len(several) == 1}
        for stem, names in found.items()
    }


def subjects(path: str, index: Index) -> dict[str, MinedFunction]:
    """The functions that a test file is about, by its path: `test/test_json/test_decode.py` is about decode.py, or else about json."""
    *folders, stem = path.removesuffix(".py").split("/")
    stem = stem.removeprefix("test_").removesuffix("_test").removesuffix("_tests")
    folder = folders[-1].removeprefix("test_") if folders else ""
    return index.get(stem) or index.get(folder) or {}


def tested_functions(module: SourceModule, index: Index) -> Iterator[TestedFunction]:
    """The tests of `module` that are short enough and about one function of the index."""
    candidates = subjects(module.path, index)
    lines = module.text.splitlines(keepends=True)
    for _, node in functions_of(module.tree):
        function = _subject(node, candidates) if node.name.startswith("test") else None
        text = text_of(node, lines) if function else None
        if function and text and sum(map(len, text)) <= MAX_TEST_CHARS:
            yield TestedFunction(function, "".join(text).rstrip(), module.path, node.lineno)


def _subject(node: FunctionNode, candidates: dict[str, MinedFunction]) -> MinedFunction | None:
    """The one function that the test calls. Of several, the one whose name is part of the test's name."""
    called = [name for name in sorted(_called_names(node)) if name in candidates and len(name) >= MIN_NAME_CHARS]
    named = [name for name in called if name in node.name]
    chosen = max(named, key=len) if named else called[0] if len(called) == 1 else None
    return candidates[chosen] if chosen else None


def _called_names(node: FunctionNode) -> set[str]:
    targets = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    plain = {target.id for target in targets if isinstance(target, ast.Name)}
    return plain | {target.attr for target in targets if isinstance(target, ast.Attribute)}
