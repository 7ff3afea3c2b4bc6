"""Tests in JavaScript are comparisons of calls with plain values. Anything else in them is refused."""

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_javascript", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.suites.examples import (
    Example,
    as_script,
    examples,
    is_exported,
    is_module,
    require_callable,
    test_file,
)
from mftcoder.errors import ConfigError

FILE = "function area(width, height) {\n  return width * height;\n}\n\nmodule.exports = { area };\n"


def area(folder: Path, text: str = FILE, name: str = "area") -> FunctionText:
    (folder / "shapes.js").write_text(text)
    return find_function(WorkingFolder(folder).read("shapes.js"), name)


@pytest.mark.parametrize(
    "assertion, example",
    [
        ("assert.equal(area(2, 3), 6)", Example("area(2, 3)", "6")),
        ("assert.deepStrictEqual(6, area(2, 3), 'six')", Example("area(2, 3)", "6")),
        ("console.assert(area(2, 3) === 6)", Example("area(2, 3)", "6")),
        ("assert(!area(2, 3))", Example("area(2, 3)", "false")),
        ("assert.ok(area(2, 3))", Example("area(2, 3)", "true")),
        ("expect(area(2, 3)).toStrictEqual({ a: [1, -2.5], 'b c': null })", Example("area(2, 3)", "{ a: [1, -2.5], 'b c': null }")),
        ("expect(() => area()).toThrow(TypeError)", Example("area()", error="TypeError")),
        ("assert.throws(() => { area('x'); })", Example("area('x')", error="")),
        ("assert.equal(JSON.stringify(area([1], 2)), JSON.stringify([2]))", Example("area([1], 2)", "[2]")),
        ("assert.equal(area(NaN, undefined), Infinity)", Example("area(NaN, undefined)", "Infinity")),
    ],
)  # fmt: skip
def test_the_usual_assertions_are_read(tmp_path: Path, assertion: str, example: Example) -> None:
    code = f'"use strict";\nimport assert from "node:assert";\ndescribe("x", () => {{ it("y", () => {{ {assertion}; }}); }});\n'
    assert examples(area(tmp_path), code) == [example]


@pytest.mark.parametrize(
    "code, reason",
    [
        ("assert.ok(true);", "not_a_call"),
        ("assert.equal(area(2, 3), area(2, 3));", "not_a_value"),
        ("process.exit(0);", "not_a_test"),
        ("assert.equal(area(2, process.exit(0)), 6);", "not_a_value"),
        ("assert.equal(area(2, (() => 3)()), 6);", "not_a_value"),
        ("assert.equal(area(2, `${process.exit(0)}`), 6);", "not_a_value"),
        ("assert.equal(area(...[2, 3]), 6);", "not_a_value"),
        ("assert.equal(area({ get x() { return 1; } }), 6);", "not_a_value"),
        ("assert.equal(area({ [1]: 1 }), 6);", "not_a_value"),
        ("assert.equal(area({ __proto__: 1 }, 1), 6);", "not_a_value"),
        ("assert.equal(area({ '__proto__': 1 }, 1), 6);", "not_a_value"),
        ("assert.equal(area(width = 1, 2), 6);", "not_a_value"),
        ('console.log("passed", area(2, 3));', "not_a_test"),
        ("assert.equal = () => {}; assert.equal(area(2, 3), 7);", "not_a_test"),
        ("area = () => 7;\nassert.equal(area(2, 3), 7);", "not_a_test"),
        ("const area = () => 7;\nassert.equal(area(2, 3), 7);", "not_a_test"),
        ("function assert() {}\nassert(area(2, 3) === 7);", "not_a_test"),
        ("try { assert.equal(area(2, 3), 7); } catch {}", "not_a_test"),
        ("if (false) assert.equal(area(2, 3), 7);", "not_a_test"),
        ("for (const x of []) assert.equal(area(1, x), 9);", "not_a_test"),
        ("test('a', async () => { await area(1); });", "not_a_test"),
        ("assert.notEqual(area(2, 3), 7);", "not_a_test"),
        ("expect(area(2, 3)).not.toBe(7);", "not_a_test"),
        ("assert.throws(() => area(1), () => true);", "not_a_test"),
        ("assert.throws(() => { throw new Error(); });", "not_a_call"),
        ("assert.ok(area.toString().length > 3);", "not_a_call"),
        ("assert.equal(mean([1]), 1);", "not_a_call"),
        ("assert.equal(area.call(null, 2, 3), 6);", "not_a_call"),
        ('import fs from "fs";\nassert.equal(area(2, 3), 6);', "forbidden_import"),
        ('const fs = require("child_process");\nassert.equal(area(2, 3), 6);', "forbidden_import"),
        ('const x = require(area(1));\nassert.equal(area(2, 3), 6);', "not_a_test"),
        ('test("area", () => {});', "no_tests"),
        ("assert.equal(area(2, 3), 6", "does_not_parse"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(RefusedAnswer) as refused:
        examples(area(tmp_path), code)
    assert refused.value.code == reason


@pytest.mark.parametrize("text", [FILE, "export function area(width, height) {\n  return width * height;\n}\n"])
def test_the_file_of_tests_reads_as_the_same_examples(tmp_path: Path, text: str) -> None:
    function = area(tmp_path, text)
    found = [Example("area(2, 3)", "6"), Example("area('a\"b')", error="TypeError"), Example("area()", error="")]
    made = test_file(function, found)
    assert examples(function, made) == found
    assert ("import { area }" in made) == text.startswith("export")


def test_a_module_loads_as_a_strict_script_without_its_exports(tmp_path: Path) -> None:
    code = "export const é = 1;\nexport default function f() {}\nexport { f as g };\nlet x = 2;\n"
    (tmp_path / "a.js").write_text(code)
    file = WorkingFolder(tmp_path).read("a.js")
    assert as_script(file, code) == "'use strict'; const é = 1;\nfunction f() {}\n\nlet x = 2;\n"


@pytest.mark.parametrize(
    "name, text, package, strict",
    [
        ("a.mjs", "let x = 2;\n", "", True),
        ("a.js", "export let x = 2;\n", "", True),
        ("a.js", "let x = 2; // export\n", "", False),
        ("a.js", "let x = 2;\n", '{"type": "module"}', True),
        ("a.js", "let x = 2;\n", '{"type": "commonjs"}', False),
        ("a.js", "let x = 2;\n", "[]", False),
        ("a.cjs", "let x = 2;\n", '{"type": "module"}', False),
    ],
)
def test_what_node_loads_as_a_module_is_one(tmp_path: Path, name: str, text: str, package: str, strict: bool) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / name).write_text(text)
    if package:
        (tmp_path / "package.json").write_text(package)
    file = WorkingFolder(tmp_path).read(f"src/{name}")
    assert is_module(file) is strict
    assert as_script(file, text).startswith("'use strict'; ") is strict


@pytest.mark.parametrize(
    "name, text, problem",
    [
        ("a.mjs", "const fs = require('fs');\n", "uses require, which a module does not have"),
        ("a.mjs", "const here = import.meta.url;\n", "uses import.meta"),
        ("a.mjs", "const x = await 1;\n", "awaits outside of a function"),
        ("a.cjs", "export const x = 1;\n", "Node loads .cjs as a script"),
    ],
)
def test_what_only_scripts_or_only_modules_have_is_refused(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(f"{text}function area(width, height) {{\n  return width * height;\n}}\n")
    with pytest.raises(ConfigError, match=problem):
        require_callable(find_function(WorkingFolder(tmp_path).read(name), "area"))


def test_a_package_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{")
    with pytest.raises(ConfigError, match=r"package\.json: is no JSON"):
        is_module(area(tmp_path).file)


def test_whether_a_test_file_can_import_the_function(tmp_path: Path) -> None:
    assert is_exported(area(tmp_path))
    assert not is_exported(area(tmp_path, FILE.replace("module.exports = { area };", "area(1, 2);")))


@pytest.mark.parametrize(
    "text",
    [
        "async function area(width) {\n  return width + 1;\n}\n",
        "function* area(width) {\n  yield width + 1;\n}\n",
        "(function () {\n  function area(width) {\n    return width + 1;\n  }\n})();\n",
        "exports.area = function (width) {\n  return width + 1;\n};\n",
        "class Box {\n  area(width) {\n    return width + 1;\n  }\n}\n",
        'import fs from "fs";\nfunction area(width) {\n  return width + 1;\n}\n',
    ],
)
def test_what_the_judge_cannot_call_is_refused(tmp_path: Path, text: str) -> None:
    function = area(tmp_path, text, "Box.area" if "class" in text else "area")
    with pytest.raises(ConfigError):
        require_callable(function)


def test_a_plain_function_and_an_arrow_can_be_called(tmp_path: Path) -> None:
    require_callable(area(tmp_path))
    require_callable(area(tmp_path, "/** Doc. */\nexport const area = (width) => {\n  return width + 1;\n};\n"))
