"""Find tests by the conventions of each language, and the function that each is about, by names only.

JUnit (`@Test`, or a method `test...`), Go (`func TestX` in `_test.go`), Rust (`#[test]`), JavaScript (`it(...)` and `test(...)`
of jest, mocha and node:test), C++ (the macros of googletest, Catch and Boost.Test).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.languages.functions import dedented, first_row, found_functions
from mftcoder.curation.mining.languages.trees import function_tree, text_of, walk
from mftcoder.curation.mining.sources import SourceModule
from mftcoder.curation.mining.tests import MAX_TEST_CHARS, MIN_NAME_CHARS, TestedFunction
from mftcoder.curation.syntax import Node

_AFFIX = re.compile(r"^tests?[_.-]?|[_.-]?(?:unit)?(?:tests?|spec)$")
_CALLS = frozenset({"call_expression", "method_invocation"})
_JS_TESTS = frozenset({"it", "test", "specify"})
_CPP_TESTS = frozenset({"TEST", "TEST_F", "TEST_P", "TYPED_TEST", "BOOST_AUTO_TEST_CASE", "BOOST_FIXTURE_TEST_CASE"})
_CATCH_TESTS = frozenset({"TEST_CASE", "SCENARIO", "TEST_CASE_METHOD"})
_JUNIT = re.compile(r"@(?:org\.junit\.(?:jupiter\.api\.)?)?Test\b")


class Candidates:
    """The functions of a folder, found by language and by the file or the folder of a test.

    `declared` holds `(language, name)` of all functions of the folder, also of those that make no example.
    """

    def __init__(self, functions: Iterable[MinedFunction], declared: Collection[tuple[str, str]]):
        self.declared = declared
        found: dict[tuple[str, ...], dict[str, list[MinedFunction]]] = defaultdict(lambda: defaultdict(list))
        for function in functions:
            for place in _places(function.module):
                found[function.language, *place][function.name].append(function)
            found[(function.language,)][function.name].append(function)
        self._found = {
            place: {name: several[0] for name, several in names.items() if len(several) == 1}
            for place, names in found.items()
        }

    def of(self, module: SourceModule) -> dict[str, MinedFunction]:
        """The functions that a file's tests can be about: of the file with its name, or else of its folder, or else of all files.

        Of functions with one name there, none is a candidate.
        """
        *_, stem = places = _places(module.path)
        named = ("stem", _AFFIX.sub("", stem[1])) if stem[0] == "stem" else stem
        for place in (("file", module.path), named, places[0], ()):
            if self._found.get((module.language, *place)):
                return self._found[module.language, *place]
        return {}


def _places(path: str) -> list[tuple[str, str]]:
    """What a function is found by: its folder, its file, and its file's name in lower case."""
    folder, _, name = path.rpartition("/")
    stem = name.rsplit(".", 1)[0].lower()
    return [("folder", folder), ("file", path), ("stem", stem)]


@dataclass(frozen=True)
class _Test:
    """A test in the tree of its file: its nodes are `first` and `last`, or one node that is both."""

    name: str
    first: Node
    last: Node


def tested_functions(module: SourceModule, candidates: Candidates) -> Iterator[TestedFunction]:
    """The tests of `module` that are short enough, parse, and are about one function."""
    functions = candidates.of(module)
    lines = module.text.split("\n")
    helpers = {found.name for found in found_functions(module.tree.root_node, module.language)}
    for test in _tests(module) if functions else ():
        called = {
            name for root in {test.first, test.last} for name in _called_names(root) if len(name) >= MIN_NAME_CHARS
        }
        known = {name for name in called if name in helpers or (module.language, name) in candidates.declared}
        function = functions.get(_subject(test.name, known))
        first = first_row(test.first)
        text = dedented(test.last, lines[first : test.last.end_point.row + 1], lines[first]) if function else None
        whole = "\n".join(text).rstrip() if text else ""
        if function and 0 < len(whole) <= MAX_TEST_CHARS and _parses(whole, module.language):
            yield TestedFunction(function, whole, module.path, first + 1)


def _parses(test: str, language: str) -> bool:
    """Whether the test is code of its language. The grammar does not know Catch's macro, so it is read as a function."""
    if language == "cpp":
        test = re.sub(r"\A(?:TEST_CASE|SCENARIO|TEST_CASE_METHOD)\s*\([^\n]*\)", "void test_case()", test)
    return function_tree(test, language, "Tests" if language == "java" else "") is not None


def _tests(module: SourceModule) -> Iterator[_Test]:
    for node in walk(module.tree.root_node):
        name, last = "", node
        if node.type in ("method_declaration", "function_declaration", "function_item"):
            name = _of_function(node, module)
        elif module.language == "javascript" and node.type == "expression_statement":
            name = _of_call(node)
        elif node.type == "function_definition":
            declarator = node.child_by_field_name("declarator")
            macro = text_of(declarator.child_by_field_name("declarator")) if declarator else ""
            name = text_of(declarator) if macro in _CPP_TESTS else ""
        elif module.language == "cpp" and node.type == "expression_statement":
            is_catch = text_of(node).split("(")[0].strip() in _CATCH_TESTS
            block = node.next_named_sibling if is_catch else None
            if block is not None and block.type == "compound_statement":
                name, last = text_of(node), block
        if name and not last.has_error:
            yield _Test(name, node, last)


def _of_function(node: Node, module: SourceModule) -> str:
    """The name of a function or method that is a test; empty for another one."""
    name = text_of(node.child_by_field_name("name"))
    if module.language == "go":
        is_test = module.path.endswith("_test.go") and bool(re.match(r"Test[A-Z0-9_]", name))
    elif module.language == "rust":
        above = "\n".join(text_of(attribute) for attribute in _attributes(node))
        is_test = bool(re.search(r"#\[(?:\w+::)?test\]", above))
    else:
        modifiers = next((text_of(child) for child in node.children if child.type == "modifiers"), "")
        is_test = module.language == "java" and (bool(_JUNIT.search(modifiers)) or name.startswith("test"))
    return name if is_test else ""


def _attributes(node: Node) -> Iterator[Node]:
    before = node.prev_named_sibling
    while before is not None and before.type == "attribute_item":
        yield before
        before = before.prev_named_sibling


def _of_call(node: Node) -> str:
    """The title in `it("title", () => ...)`; empty for another statement."""
    call = node.named_children[0] if node.named_children else None
    if call is None or call.type != "call_expression" or text_of(call.child_by_field_name("function")) not in _JS_TESTS:
        return ""
    arguments = call.child_by_field_name("arguments")
    given = arguments.named_children if arguments else []
    return text_of(given[0]) if len(given) > 1 and "string" in given[0].type else ""


def _subject(title: str, known: set[str]) -> str:
    """The one function of the project that the test calls. Of several, the one whose name is part of the test's name."""
    named = [name for name in sorted(known) if _plain(name) in _plain(title)]
    return max(named, key=len) if named else next(iter(known)) if len(known) == 1 else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _called_names(root: Node) -> Iterator[str]:
    """The last names of what is called. In Rust's macros, of what has parentheses behind it."""
    for node in walk(root):
        if node.type in _CALLS:
            target = node.child_by_field_name("name") or node.child_by_field_name("function")
            yield re.sub(r"<.*", "", text_of(target)).replace(":", ".").split(".")[-1]
        elif node.type == "token_tree":
            for name, behind in zip(node.children, node.children[1:], strict=False):
                if name.type == "identifier" and behind.type == "token_tree" and text_of(behind).startswith("("):
                    yield text_of(name)
