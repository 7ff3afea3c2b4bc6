"""What a whole repository adds to its functions: the same one in two languages, and what a function uses."""

import ast
import random
from pathlib import Path

import pytest

from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.mine import MiningOptions, Record, mine, pairs
from mftcoder.curation.mining.repository.context import MAX_CHARS, Context
from mftcoder.curation.mining.sources import SourceModule

PYTHON = '''import os
import re as regular, sys
from json import dumps


class Box:
    def widen(self, by=1):
        """Make it wider."""
        return dumps({"by": by, "path": os.sep, "far": far_off(by), "twice": doubled(by)})


def far_away(value):
    return value


def doubled(value, *, times=2):
    return value * times
'''
GO = """package sdk

import (
	"fmt"
	str "strings"
)

func ClampTo(value int, low interface{}) string {
	if value < 0 {
		return str.Repeat("x", limit(value))
	}
	return "a text that is long enough"
}

func limit(value int) int { return value }
"""
JAVA = """package sdk;

class Ranges {
    static String clampTo(int value, Object low) {
        if (value < 0) {
            return "x".repeat(value);
        }
        return "a text that is long enough";
    }
}
"""


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    pytest.importorskip("tree_sitter")


def function(module: str, name: str, language: str) -> MinedFunction:
    return MinedFunction(module, "", name, 1, "", "", "", "", language)


def names(*functions: MinedFunction) -> list[tuple[str, str]]:
    return [(one.origin, other.origin) for one, other in pairs(functions)]


def test_functions_of_one_name_in_files_of_one_name_are_a_pair() -> None:
    go, java = function("go/ranges.go", "ClampTo", "go"), function("java/Ranges.java", "clampTo", "java")
    rust = function("rust/ranges/mod.rs", "clamp_to", "rust")
    assert names(go, java) == [("go/ranges.go:1", "java/Ranges.java:1")]
    assert len(names(go, java, rust)) == 3
    assert names(go, function("java/Other.java", "clampTo", "java")) == []
    assert names(go, function("more/ranges.go", "ClampTo", "go"), java) == []  # which of the two is it?
    assert names(function("a/x.go", "Get", "go"), function("a/x.py", "get", "python")) == []


def translated(folder: Path, **options: object) -> list[Record]:
    for name, text in {"ranges.go": GO, "Ranges.java": JAVA}.items():
        (folder / name).write_text(text)
    mined = mine(folder, MiningOptions(tasks=("translate",), valid_share=0.0, **options))  # type: ignore[arg-type]
    return mined.tasks["translate"].train


def test_a_pair_is_one_example_that_names_both_places(tmp_path: Path) -> None:
    (record,) = translated(tmp_path)
    question, answer = (turn["content"] for turn in record["chat_rounds"])
    into, known = ("Java", "Go") if record["language"] == "java" else ("Go", "Java")
    assert question.startswith(f"Translate the following {known} function into {into}.")
    assert {record["source"], record["translated_from"]} == {"ranges.go:8", "Ranges.java:4"}
    assert answer.startswith(f"```{record['language']}\n")
    directions = {translated(tmp_path, seed=seed)[0]["language"] for seed in range(8)}
    assert directions == {"go", "java"}


def test_a_translation_is_under_the_licences_of_both_files(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Apache License, Version 2.0, January 2004")
    translated(tmp_path)
    (tmp_path / "ranges.go").write_text(f"// SPDX-License-Identifier: MIT\n{GO}")
    mined = mine(tmp_path, MiningOptions(tasks=("translate",), valid_share=0.0))
    assert mined.tasks["translate"].train[0]["license"] == "Apache-2.0 AND MIT"


def test_a_pair_on_both_sides_of_the_split_is_counted(tmp_path: Path) -> None:
    translated(tmp_path)
    skipped = 0
    for seed in range(12):
        mined = mine(tmp_path, MiningOptions(tasks=("translate",), valid_share=0.5, seed=seed))
        task, reason = mined.tasks["translate"], "translate: the two languages are on different sides of the split"
        assert len(task.train) + len(task.valid) + mined.skips[reason] == 1
        skipped += mined.skips[reason]
    assert 0 < skipped < 12


def context_of(folder: Path, task: str, file: str, text: str) -> list[str]:
    (folder / file).write_text(text)
    mined = mine(folder, MiningOptions(tasks=(task,), valid_share=0.0, context=True))
    return [record["chat_rounds"][0]["content"] for record in mined.tasks[task].train]


def test_the_question_shows_imports_and_signatures_that_the_function_uses(tmp_path: Path) -> None:
    (tmp_path / "far.py").write_text("def far_off(value: int) -> int:\n    return value\n")
    (question,) = context_of(
        tmp_path, "write_function", "box.py", PYTHON.replace("Make it wider.", "Make it wider than it was.")
    )
    shown = question.split("Its repository has:\n\n```python\n")[1].split("\n```")[0]
    assert shown == (
        "import os\nfrom json import dumps\n\n"
        "# far.py\ndef far_off(value: int) -> int:\n\n# box.py\ndef doubled(value, *, times=2):"
    )


def test_signatures_of_go_keep_their_braces_and_imports_are_taken_apart(tmp_path: Path) -> None:
    (question,) = context_of(tmp_path, "complete_function", "ranges.go", GO)
    assert 'import str "strings"\n\n// ranges.go\nfunc limit(value int) int\n```' in question
    assert "fmt" not in question
    context = Context()
    from mftcoder.curation.syntax import parse

    context.add(SourceModule("ranges.go", GO, parse(GO, "go"), "go"))
    caller = MinedFunction("x.go", "", "f", 1, "func f() {\n", "", "", '\tClampTo(1, "a")\n}\n', "go")
    assert context.of(caller) == "// ranges.go\nfunc ClampTo(value int, low interface{}) string"


def test_a_name_that_several_files_define_is_not_guessed() -> None:
    context = Context()
    for path in ("a.py", "b.py"):
        text = "def helper(value):\n    return value\n"
        context.add(SourceModule(path, text, ast.parse(text)))
    caller = MinedFunction("c.py", "", "f", 1, "def f():\n", "", "", "    return helper(1)\n")
    assert context.of(caller) == ""
    assert "# a.py" in context.of(MinedFunction("a.py", "", "f", 1, "def f():\n", "", "", "    return helper(1)\n"))


def test_context_has_an_end() -> None:
    context, text = Context(), ""
    called = [f"helper_{n}" for n in range(200)]
    for name in called:
        text = f"def {name}(value):\n    return value\n"
        context.add(SourceModule(f"{name}.py", text, ast.parse(text)))
    random.Random(0).shuffle(called)
    caller = MinedFunction("c.py", "", "f", 1, "def f():\n", "", "", "".join(f"    {name}(1)\n" for name in called))
    assert 1000 < len(context.of(caller)) <= MAX_CHARS
