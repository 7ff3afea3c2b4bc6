"""Tests in JavaScript: one call with plain values, and what it gives. Everything else is refused, so no test can do more than compare.

An example is read from the assertions that people write (node:assert, jest, console.assert), and runs in the exam's judge, whose process
never holds the code under test (execution/compiled).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mftcoder.assistant.checks.names import declared_list
from mftcoder.assistant.files import SourceFile, read_bytes
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.mining.languages.grammars import COMMENTS
from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import Node, parse
from mftcoder.errors import ConfigError

MOST_EXAMPLES = 24
HELPERS = """\
const mft_same = require("util").isDeepStrictEqual;
const mft_throws = (call, name) => { try { call(); } catch (error) { return !name || String(error.message).startsWith(name + ":"); } return false; };
"""
_EQUAL = frozenset({"equal", "strictEqual", "deepEqual", "deepStrictEqual"})
_TO_EQUAL = frozenset({"toBe", "toEqual", "toStrictEqual"})
_BLOCKS = frozenset({"test", "it", "describe"})
_SOURCES = re.compile(r"(node:)?(assert(/strict)?|test)|vitest|@jest/globals|chai|\.{1,2}/[\w./-]+")
_WORDS = frozenset({"undefined", "NaN", "Infinity"})
_PLAIN = frozenset({"number", "string", "true", "false", "null", "undefined"})
_DECLARED = frozenset({"function_declaration", "lexical_declaration", "variable_declaration"})


@dataclass(frozen=True)
class Example:
    """A call and the value that it gives, or the error that it throws."""

    call: str
    value: str = ""
    error: str | None = None
    """The name of the error; `""` for any; None where the call gives a value."""

    @property
    def check(self) -> str:
        """As the judge runs it."""
        if self.error is None:
            return f"console.assert(mft_same({self.call}, {self.value}));"
        return f"console.assert(mft_throws(() => {self.call}, {json.dumps(self.error)}));"

    @property
    def assertion(self) -> str:
        """As it stands in a test file."""
        if self.error is None:
            return f"assert.deepStrictEqual({self.call}, {self.value});"
        return f"assert.throws(() => {self.call}{f', {self.error}' if self.error else ''});"


def examples(function: FunctionText, code: str) -> list[Example]:
    """The examples in tests. RefusedAnswer for tests that hold anything else, or none."""
    tree = parse(code, "javascript")
    if tree is None or tree.root_node.has_error:
        raise RefusedAnswer("does_not_parse", "The tests do not parse as JavaScript.")
    found = list(dict.fromkeys(_in_statements(tree.root_node, function.name)))
    if not found:
        raise RefusedAnswer("no_tests", f"No test calls {function.name} and compares what it gives.")
    return found[:MOST_EXAMPLES]


def _in_statements(block: Node, name: str) -> Iterator[Example]:
    for node in block.named_children:
        inner = node.named_children[0] if node.named_child_count else None
        if node.type in COMMENTS or (node.type == "function_declaration" and text_of(_field(node, "name")) == name):
            continue  # a copy of the code: without it, the tests are about the code itself
        if node.type == "import_statement" or _is_require(node):
            _check_source(node)
        elif node.type == "expression_statement" and inner is not None and inner.type == "call_expression":
            yield from _of_call(inner, name)
        elif node.type != "expression_statement" or inner is None or inner.type != "string":  # "use strict"
            raise RefusedAnswer("not_a_test", f"A test holds assertions only, not: {text_of(node)[:80]}")


def _is_require(node: Node) -> bool:
    """`const assert = require("assert")`, or `const { test } = require("node:test")`."""
    values = [_field(child, "value") for child in node.named_children] if node.type in _DECLARED else []
    return bool(values) and all(
        value is not None and re.fullmatch(r"require\(\s*(['\"])[^'\"]*\1\s*\)(\.strict)?", text_of(value))
        for value in values
    )


def _check_source(node: Node) -> None:
    for source in re.findall(r"['\"]([^'\"]*)['\"]", text_of(node)):
        if not _SOURCES.fullmatch(source):
            raise RefusedAnswer(
                "forbidden_import", f"Tests may not import {source}: they call the function and compare."
            )


def _of_call(call: Node, name: str) -> Iterator[Example]:
    callee, given = _field(call, "function"), _arguments(call)
    path = text_of(callee)
    if path in _BLOCKS and given and given[-1].type in ("arrow_function", "function_expression"):
        body = _field(given[-1], "body")
        if body is None or body.type != "statement_block":
            raise RefusedAnswer("not_a_test", f"Write the test as a block: {text_of(call)[:80]}")
        yield from _in_statements(body, name)
    elif path.startswith("expect(") and callee is not None and callee.type == "member_expression":
        yield _expected(call, callee, given, name)
    elif path.split(".")[0] in ("assert", "console") and given:
        yield _asserted(path.split(".")[-1], given, name)
    else:
        raise RefusedAnswer("not_a_test", f"A test holds assertions only, not: {text_of(call)[:80]}")


def _expected(call: Node, callee: Node, given: list[Node], name: str) -> Example:
    """`expect(f(1)).toBe(2)`."""
    matcher, asked = text_of(_field(callee, "property")), _field(callee, "object")
    subjects = _arguments(asked) if asked is not None and asked.type == "call_expression" else []
    if len(subjects) == 1 and matcher in _TO_EQUAL and len(given) == 1:
        return _equal(subjects[0], given[0], name)
    if len(subjects) == 1 and matcher in ("toThrow", "toThrowError"):
        return _throws([*subjects, *given], name)
    raise RefusedAnswer("not_a_test", f"Compare with toBe, toEqual or toThrow: {text_of(call)[:80]}")


def _asserted(method: str, given: list[Node], name: str) -> Example:
    """`assert.equal(f(1), 2)`, `assert(f(1) === 2)`, `assert.throws(() => f(1), TypeError)`."""
    if method in _EQUAL and len(given) in (2, 3):
        return _equal(given[0], given[1], name)
    if method == "throws":
        return _throws(given, name)
    if method not in ("assert", "ok"):
        raise RefusedAnswer("not_a_test", f"Compare with equal, deepStrictEqual or throws, not with {method}.")
    claim = _bare(given[0])
    operator = text_of(_field(claim, "operator"))
    left, right = _field(claim, "left"), _field(claim, "right")
    if claim.type == "binary_expression" and operator in ("===", "==") and left is not None and right is not None:
        return _equal(left, right, name)
    inner = _field(claim, "argument")
    if claim.type == "unary_expression" and operator == "!" and inner is not None:
        return Example(_called(inner, name), "false")
    return Example(_called(claim, name), "true")


def _equal(left: Node, right: Node, name: str) -> Example:
    """The call on one side, the value on the other; `JSON.stringify` around both is taken away."""
    sides = [_bare(side) for side in (left, right)]
    if all(text_of(side).startswith("JSON.stringify(") and len(_arguments(side)) == 1 for side in sides):
        sides = [_arguments(side)[0] for side in sides]
    if text_of(_field(sides[0], "function")) != name:
        sides.reverse()
    return Example(_called(sides[0], name), _value(sides[1]))


def _throws(given: list[Node], name: str) -> Example:
    """`() => f(1)` and perhaps the name of the error."""
    body = _field(given[0], "body") if given[0].type in ("arrow_function", "function_expression") else None
    if body is not None and body.type == "statement_block" and body.named_child_count == 1:
        body = next(iter(body.named_children[0].named_children), None)
    if body is None:
        raise RefusedAnswer("not_a_test", "Write an error as assert.throws(() => call, ErrorName).")
    error = text_of(given[1]) if len(given) > 1 else ""
    if not re.fullmatch(r"(\w*Error)?", error):
        raise RefusedAnswer("not_a_test", f"Name the error by its class, not by {error[:60]}.")
    return Example(_called(body, name), error=error)


def _called(node: Node, name: str) -> str:
    """The text of a call of the function with plain values."""
    call = _bare(node)
    if call.type != "call_expression" or text_of(_field(call, "function")) != name:
        raise RefusedAnswer("not_a_call", f"An assertion compares a call of {name}, not: {text_of(node)[:80]}")
    return f"{name}({', '.join(_value(one) for one in _arguments(call))})"


def _value(node: Node) -> str:
    """The text of a plain value."""
    for inner in walk(_bare(node)):
        kind, text = inner.type, text_of(inner)
        plain = kind in _PLAIN or (kind == "identifier" and text in _WORDS)
        built = kind in ("array", "object", "unary_expression", "string_fragment", "escape_sequence", "template_string")
        is_pair = kind == "pair" and inner.named_child_count == 2
        is_key = kind == "property_identifier" and text not in ("__proto__", "constructor", "prototype")
        is_sign = kind in ("-", "+") and inner.parent is not None and inner.parent.type == "unary_expression"
        if not (plain or built or is_pair or is_key or is_sign or kind in _PUNCTUATION) or "__proto__" in text:
            raise RefusedAnswer("not_a_value", f"Write plain values in tests, not: {text[:80]}")
    return text_of(_bare(node))


_PUNCTUATION = frozenset({",", ":", "[", "]", "{", "}", '"', "'", "`"})


def _bare(node: Node) -> Node:
    while node.type == "parenthesized_expression" and node.named_child_count == 1:
        node = node.named_children[0]
    return node


def _field(node: Node, name: str) -> Node | None:
    return node.child_by_field_name(name)


def _arguments(call: Node) -> list[Node]:
    given = _field(call, "arguments")
    return [one for one in given.named_children if one.type not in COMMENTS] if given is not None else []


def test_file(function: FunctionText, found: list[Example]) -> str:
    """The examples as a file for `node --test`."""
    path = function.file.path.name
    if is_module(function.file):
        opening = f'import test from "node:test";\nimport assert from "node:assert";\nimport {{ {function.name} }} from "./{path}";\n'
    else:
        opening = f'const test = require("node:test");\nconst assert = require("node:assert");\nconst {{ {function.name} }} = require("./{path}");\n'
    cases = (f"test({json.dumps(one.call)}, () => {{\n  {one.assertion}\n}});\n" for one in found)
    return "\n".join([opening, *cases])


test_file.__test__ = False  # type: ignore[attr-defined]


def is_exported(function: FunctionText) -> bool:
    """Whether a test file can import the function."""
    return re.search(rf"\bexports?\b[^;]*\b{re.escape(function.name)}\b", function.file.text) is not None


def is_module(file: SourceFile) -> bool:
    """Whether Node loads the file as a module, whose code is strict: by its suffix, by what it exports, or by its package."""
    suffix = file.path.suffix.lower()
    if suffix in (".mjs", ".cjs"):
        return suffix == ".mjs"
    tree = parse(file.text, "javascript")
    tops = tree.root_node.children if tree is not None else []
    return (
        any(node.type in ("import_statement", "export_statement") for node in tops) or _package_kind(file) == "module"
    )


def _package_kind(file: SourceFile) -> str:
    """`type` of the nearest package.json within the working folder."""
    for folder in list(file.path.parents)[: len(Path(file.name).parts)]:
        package = folder / "package.json"
        if package.is_file():
            try:
                read = json.loads(read_bytes(package, package.name))
            except (ValueError, RecursionError):
                raise ConfigError(f"{package}: is no JSON, so Node cannot load {file.name}") from None
            return str(read.get("type", "")) if isinstance(read, dict) else ""
    return ""


def as_script(file: SourceFile, code: str) -> str:
    """The file with this code as the judge loads it: without `export`; a module is strict."""
    tree = parse(code, "javascript")
    data = code.encode()
    for node in reversed(tree.root_node.children if tree is not None else []):
        if node.type == "export_statement":
            inner = node.child_by_field_name("declaration") or node.child_by_field_name("value")
            data = data[: node.start_byte] + data[inner.start_byte if inner else node.end_byte :]
    return f"'use strict'; {data.decode()}" if is_module(file) else data.decode()


def require_callable(function: FunctionText) -> None:
    """ConfigError for what the judge cannot call: methods, nested and async functions, and files that import others.

    The judge loads a module as a strict script, so that what only one of the two has is refused too.
    """
    where = f"{function.file.name}:{function.name}"
    tree = parse(function.file.text, "javascript")
    if tree is None or tree.root_node.has_error:
        raise ConfigError(f"{function.file.name}: does not parse as JavaScript. Correct the file first")
    tops = tree.root_node.named_children
    if any(node.type == "import_statement" or node.child_by_field_name("source") for node in tops):
        raise ConfigError(f"{function.file.name}: imports other modules, so it cannot be loaded alone in the sandbox")
    _require_module(function, tree.root_node)
    own = [node for node in tops if function.first <= node.start_point.row < function.end and node.type not in COMMENTS]
    node = own[0] if len(own) == 1 else None
    if node is not None and node.type == "export_statement":
        node = node.child_by_field_name("declaration")
    if node is None or node.type not in _DECLARED or re.search(r"\basync\b|\bfunction\s*\*", text_of(node)):
        raise ConfigError(f"{where}: only plain functions at the top level of a file can be tested in JavaScript")


def _require_module(function: FunctionText, root: Node) -> None:
    """ConfigError for a module that uses what only scripts have, or what a strict script does not have."""
    file = function.file
    is_strict = is_module(file)
    if not is_strict:
        if any(node.type == "export_statement" for node in root.children):
            raise ConfigError(f"{file.name}: exports like a module, but Node loads .cjs as a script")
        return
    declared = set(declared_list(root, "javascript"))
    for node in walk(root):
        text = text_of(node)
        if node.type == "identifier" and text in _OF_SCRIPTS - declared:
            raise ConfigError(f"{file.name}: uses {text}, which a module does not have, so Node cannot run it")
        if node.type == "meta_property" and text.startswith("import"):
            raise ConfigError(f"{file.name}: uses import.meta, which the sandbox does not have")
        if node.type == "await_expression" and not _is_in_function(node):
            raise ConfigError(f"{file.name}: awaits outside of a function, which the sandbox cannot do")


_OF_SCRIPTS = frozenset({"require", "module", "exports", "__dirname", "__filename"})


def _is_in_function(node: Node) -> bool:
    while node.parent is not None:
        node = node.parent
        if "function" in node.type or node.type == "method_definition":
            return True
    return False
