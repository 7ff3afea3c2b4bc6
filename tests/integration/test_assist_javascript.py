"""`mft assist test`, `optimise` and `fix` on JavaScript over a real endpoint that lies: no bad answer is accepted."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("tree_sitter_javascript", reason="the extra `curate` brings the grammars")
if shutil.which("node") is None:
    pytest.skip("node runs the tests", allow_module_level=True)

from mftcoder.assistant.assistant import Assistant
from mftcoder.assistant.functions import find_function
from mftcoder.assistant.model import open_endpoint
from mftcoder.assistant.rounds import Proposal
from mftcoder.curation.example import fenced
from mftcoder.errors import ConfigError, NoAnswerAcceptedError
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint

SHAPES = """\
const CACHE = {};

/** The area of a rectangle. */
function area(width, height) {
  if (width < 0 || height < 0) {
    throw new RangeError("negative");
  }
  return width * height;
}

function mean(items) {
  let total = 0;
  for (const item of items) {
    total += item;
  }
  return items.reduce((sum, item) => sum + item) / items.length;
}

async function later() {
  return 1;
}

module.exports = { area, mean };
"""
AREA = SHAPES[SHAPES.index("function area") : SHAPES.index("function mean")].rstrip() + "\n"
SHORTER = AREA.replace("width < 0 || height < 0", "Math.min(width, height) < 0")
TESTS = """\
const test = require("node:test");
const assert = require("node:assert");
const { area } = require("./shapes.js");

test("area(2, 3)", () => {
  assert.deepStrictEqual(area(2, 3), 6);
});

test("area(-1, 2)", () => {
  assert.throws(() => area(-1, 2), RangeError);
});
"""


def js(code: str) -> str:
    return fenced(code, "javascript")


def with_body(line: str) -> str:
    return js(AREA.replace("  if (width", f"  {line}\n  if (width", 1))


LIES = {
    "tests that print": ("test", js('console.log("passed", area(2, 3));'), "not_a_test"),
    "tests that find no mutant": ("test", js("assert.throws(() => area(-1, -1), RangeError);"), "checks_nothing"),
    "tests with wrong values": ("test", js("assert.equal(area(2, 3), 5);"), "tests_fail"),
    "tests in Python": ("test", fenced("assert area(2, 3) == 6"), "wrong_language"),
    "wrong code": ("optimise", js(AREA.replace("width * height", "width + height")), "tests_fail"),
    "code that passes by an exit": ("optimise", with_body("process.exit(0);"), "new_power"),
    "code that writes through an alias": ("optimise", with_body("const c = CACHE; c[width] = height;"), "outside"),
    "code that never ends": ("optimise", with_body("while (true) {}"), "tests_fail"),
}  # fmt: skip


class Says:
    """An endpoint that answers with what a test set last, one answer after the other."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def __call__(self, asked: Asked) -> Answer:
        return Answer(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


@pytest.fixture(scope="module")
def says() -> Says:
    return Says()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("javascript")
    (folder / "shapes.js").write_text(SHAPES)
    (folder / "shapes.test.js").write_text(TESTS)
    return folder


@pytest.fixture(scope="module")
def assistant(says: Says, folder: Path) -> Iterator[Assistant]:
    with (
        ScriptedEndpoint(says) as server,
        Assistant(open_endpoint(server.url, "scripted"), folder, rounds=1, mutants=8) as one,
    ):
        yield one


def asked_of(assistant: Assistant, verb: str) -> Proposal:
    if verb == "optimise":
        return assistant.optimise("shapes.js:area", tests="shapes.test.js")
    return assistant.test("shapes.js:area")


ENDLESS = pytest.mark.slow(reason="a program that runs until its three seconds of CPU time are used")


@pytest.mark.parametrize("lie", [pytest.param(lie, marks=ENDLESS if "never ends" in lie else ()) for lie in LIES])
def test_a_lie_is_refused_for_its_own_reason(assistant: Assistant, says: Says, lie: str) -> None:
    verb, answer, code = LIES[lie]
    says.answers = [answer]
    with pytest.raises(NoAnswerAcceptedError) as refused:
        asked_of(assistant, verb)
    assert f": {code}: " in refused.value.problems[0], refused.value.problems[0]


def test_tests_hold_on_the_code_find_mutants_and_run_under_node(assistant: Assistant, says: Says, folder: Path) -> None:
    says.answers = [
        js("expect(area(2, 3)).toBe(6);\nassert.throws(() => area(-1, 2), RangeError);\nassert(area(1, 1) === 9);")
    ]
    made = assistant.test("shapes.js:area")
    assert made.text == TESTS
    assert made.score.endswith("%)") and not made.score.startswith("0 ")
    assert made.notes == ("1 of 3 tests left out: they fail on the code",)
    (folder / "made.test.js").write_text(made.text)
    assert (
        subprocess.run(["node", "--test", "made.test.js"], cwd=folder, capture_output=True, timeout=60).returncode == 0
    )
    (folder / "made.test.js").unlink()


def test_an_honest_change_is_a_patch_of_the_body(assistant: Assistant, says: Says) -> None:
    says.answers = [js(SHORTER)]
    patch = asked_of(assistant, "optimise").patch
    assert "+  if (Math.min(width, height) < 0) {" in patch and patch.count("\n+") == 2


def test_a_fix_shows_the_error_before_and_keeps_what_works(assistant: Assistant, says: Says, folder: Path) -> None:
    mean = SHAPES[SHAPES.index("function mean") : SHAPES.index("async")].rstrip() + "\n"
    works = js("assert.equal(mean([1, 2, 6]), 3);")
    shows = js("assert.equal(mean([]), 0);")
    right = mean.replace(
        "items.reduce((sum, item) => sum + item) / items.length", "items.length ? total / items.length : 0"
    )
    log = "TypeError: Reduce of empty array with no initial value\n    at mean (/x/shapes.js:16:16)\n"
    says.answers = [shows, works, js(right)]
    fixed = assistant.fix("shapes.js", log)
    assert "+  return items.length ? total / items.length : 0;" in fixed.patch
    assert fixed.tests.count('require("node:test")') == 1
    assert "mean([]), 0" in fixed.tests and "mean([1, 2, 6]), 3" in fixed.tests
    says.answers = [works]
    with pytest.raises(NoAnswerAcceptedError, match="error_not_shown"):
        assistant.fix("shapes.js", log)


@pytest.mark.parametrize(
    "place, problem",
    [
        ("shapes.js:later", "only plain functions at the top level"),
        ("imports.mjs:twice", "imports other modules"),
        ("throws.js:twice", "cannot be loaded alone in the sandbox"),
        ("Main.java:twice", "only plain static methods of a class"),
    ],
)
def test_what_cannot_be_tested_is_refused_in_one_line(
    assistant: Assistant, folder: Path, place: str, problem: str
) -> None:
    twice = "function twice(x) {\n  return x + x;\n}\n"
    (folder / "imports.mjs").write_text(f'import fs from "fs";\nexport {twice}')
    (folder / "throws.js").write_text(f'require("./nowhere");\n{twice}')
    (folder / "Main.java").write_text("class Main {\n    int twice(int x) {\n        return x + x;\n    }\n}\n")
    with pytest.raises(ConfigError, match=problem) as refused:
        assistant.test(place)
    assert len(refused.value.problems) == 1 and "\n" not in refused.value.problems[0]


@pytest.mark.parametrize("opening", ["export ", "export default "])
def test_functions_of_modules_are_tested_too(assistant: Assistant, says: Says, folder: Path, opening: str) -> None:
    (folder / "twice.mjs").write_text(f"{opening}function twice(x) {{\n  return x + x;\n}}\nexport const ONE = 1;\n")
    says.answers = [js("assert.equal(twice(3), 6);\nassert.equal(twice(0), 0);")]
    made = assistant.test("twice.mjs:twice")
    assert 'import test from "node:test"' in made.text and "twice(3), 6" in made.text


STRICT = "function strict() {\n  return (function () { return this; })() === undefined;\n}\n"


@pytest.mark.parametrize(
    "name, opening, is_strict",
    [
        ("strict.mjs", "", "true"),
        ("strict.js", "export ", "true"),
        ("package/strict.js", "", "true"),
        ("directive.js", "// first\n'use strict';\n", "true"),
        ("sloppy.js", "", "false"),
        ("package/sloppy.cjs", "", "false"),
    ],
)
def test_a_module_runs_strict_and_a_script_does_not(
    assistant: Assistant, folder: Path, name: str, opening: str, is_strict: str
) -> None:
    (folder / "package").mkdir(exist_ok=True)
    (folder / "package" / "package.json").write_text('{"type": "module"}')
    (folder / name).write_text(f"{opening}{STRICT}")
    function = find_function(assistant.folder.read(name), "strict")
    [verdict] = assistant.trials.tests(
        function, [(function.file.text, f"console.assert(mft_same(strict(), {is_strict}));")]
    )
    assert verdict.outcome == "passed", verdict


def test_a_table_of_the_tests_inputs_is_no_better_function(assistant: Assistant, says: Says) -> None:
    table = "if (width === 2) {\n    return 6;\n  }\n  throw new RangeError('negative');"
    says.answers = [js(f"function area(width, height) {{\n  {table}\n}}\n")]
    with pytest.raises(NoAnswerAcceptedError, match="other_result"):
        asked_of(assistant, "optimise")
