"""Functions, doc comments, tests and bugs of five languages with braces: what is taken, that it parses, and what is left out."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from mftcoder.curation.example import fenced_blocks
from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.functions import mine_functions as mine_python_functions
from mftcoder.curation.mining.languages.functions import mine_functions
from mftcoder.curation.mining.languages.mutations import MUTATIONS, mutations
from mftcoder.curation.mining.languages.spans import spans
from mftcoder.curation.mining.languages.trees import function_tree
from mftcoder.curation.mining.mine import Mined, MiningOptions, mine
from mftcoder.curation.mining.sources import SourceModule, language_of, source_files
from mftcoder.curation.mining.tasks import TASKS, UnfitError
from mftcoder.curation.syntax import parse
from mftcoder.data.records.formats import detect


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    pytest.importorskip("tree_sitter")


FILES = {
    "java": (
        "src/Ranges.java",
        """package a;

public class Ranges {
    /**
     * Moves a value into the range from low to high.
     *
     * @param value what is moved
     */
    @Deprecated
    public static int clamp(int value, int low, int high) {
        if (value < low && low < high) {
            return low;  // the least
        }
        int moved = Math.min(value, high) + 1;
        moved -= 1;
        return moved;
    }

    public Ranges(int low) {
        this.low = low;
        this.high = low + 1000000;
    }
}
""",
        "test/RangesTest.java",
        """public class RangesTest {
    @Test
    public void clampsFromBelow() {
        assertEquals(2, Ranges.clamp(1, 2, 3));
    }
}
""",
    ),
    "javascript": (
        "lib/ranges.js",
        """'use strict';

/**
 * Moves a value into the range from low to high.
 */
export const clamp = (value, low, high) => {
  if (value < low && low < high) {
    return low; // the least
  }
  let moved = Math.min(value, high) + 1;
  moved -= 1;
  return moved;
};
""",
        "test/ranges.test.js",
        """const { clamp } = require('../lib/ranges');

describe('clamp', () => {
  it('moves from below', () => {
    assert.equal(clamp(1, 2, 3), 2);
  });
});
""",
    ),
    "go": (
        "ranges/ranges.go",
        """package ranges

import "math"

// Clamp moves a value into the range from low to high.
// The range is not empty.
func Clamp(value, low, high int) int {
	if value < low && low < high {
		return low // the least
	}
	moved := min(value, high) + 1
	moved -= 1
	return moved
}
""",
        "ranges/ranges_test.go",
        """package ranges

func TestClampFromBelow(t *testing.T) {
	if Clamp(1, 2, 3) != 2 {
		t.Error("not moved")
	}
}
""",
    ),
    "rust": (
        "src/ranges.rs",
        """use std::cmp::min;

/// Moves a value into the range from low to high.
///
/// The range is not empty.
#[inline]
pub fn clamp(value: i64, low: i64, high: i64) -> i64 {
    if value < low && low < high {
        return low; // the least
    }
    let mut moved = min(value, high) + 1;
    moved -= 1;
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamp_moves_from_below() {
        assert_eq!(clamp(1, 2, 3), 2);
    }
}
""",
        "",
        "",
    ),
    "cpp": (
        "src/ranges.cc",
        """#include "ranges.h"

namespace ranges {

// Moves a value into the range from low to high.
template <typename T>
T clamp(T value, T low, T high)
{
    if (value < low && low < high) {
        return low;  // the least
    }
    T moved = std::min(value, high) + 1;
    moved -= 1;
    return moved;
}

}  // namespace ranges
""",
        "src/ranges_test.cc",
        """#include "ranges.h"

TEST(Ranges, ClampFromBelow) {
    EXPECT_EQ(2, ranges::clamp(1, 2, 3));
}
""",
    ),
}


def module_of(language: str, text: str = "", path: str = "") -> SourceModule:
    text = text or FILES[language][1]
    return SourceModule(path or FILES[language][0], text, parse(text, language), language)


def function_of(language: str, text: str = "") -> MinedFunction:
    (function,) = mine_functions(module_of(language, text), Counter())
    return function


def repository(folder: Path, *languages: str) -> Path:
    for language in languages:
        code, text, test, test_text = FILES[language]
        for path, content in ((code, text), (test, test_text)):
            if path:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(content)
    return folder


def codes(text: str) -> list[str]:
    return [block.code for block in fenced_blocks(text)]


@pytest.mark.parametrize("language", FILES)
def test_a_function_is_its_doc_comment_header_and_body_without_indentation(language: str) -> None:
    function = function_of(language)
    assert (function.name.lower(), function.language) == ("clamp", language)
    assert function.source == (function.docstring_text + function.header + function.body).rstrip("\n")
    assert function.docstring.lower().endswith(
        "the range is not empty." if language in ("go", "rust") else function.docstring[-1]
    )
    assert "a value into the range from low to high." in function.docstring
    assert not set(function.docstring.splitlines()[0]) & set("/*")
    assert function.header.rstrip().endswith("{")
    assert function.body.startswith((" ", "\t"))
    assert function.body.rstrip().endswith(("}", "};"))
    assert "the least" in function.body
    assert not function.source.startswith((" ", "\t"))
    assert function_tree(function.source, language, function.owner)
    assert FILES[language][1].splitlines()[function.line - 1].strip() == function.header.splitlines()[0]


def test_attributes_annotations_and_templates_belong_to_the_header() -> None:
    assert function_of("java").header.startswith("@Deprecated\npublic static int clamp(")
    assert function_of("rust").header.startswith("#[inline]\npub fn clamp(")
    assert function_of("cpp").header.startswith("template <typename T>\nT clamp(")
    assert function_of("javascript").header.startswith("export const clamp = ")


@pytest.mark.parametrize("language", FILES)
@pytest.mark.parametrize("task", ["complete_function", "write_function", "write_docstring", "repair_function"])
def test_each_task_asks_and_answers_with_code_that_parses(language: str, task: str) -> None:
    function = function_of(language)
    for seed in range(6):
        example = TASKS[task](function, random.Random(seed))
        answer = codes(example.answer)[0] if codes(example.answer) else f"{example.answer}\n{codes(example.prompt)[0]}"
        tree = function_tree(answer, language, function.owner)
        assert tree is not None
        assert tree.tokens == function_tree(function.source, language, function.owner).tokens  # type: ignore[union-attr]
        if task == "complete_function":
            assert function.source.startswith(codes(example.prompt)[0].rstrip())
        if task == "repair_function":
            assert function_tree(codes(example.prompt)[0], language, function.owner)


@pytest.mark.parametrize("language", FILES)
def test_every_bug_parses_and_changes_the_program(language: str) -> None:
    function = function_of(language)
    own = function_tree(function.source, language, function.owner)
    made = list(mutations(function.source, language, function.owner, random.Random(0)))
    kinds = {mutation.kind for mutation in made}
    assert kinds >= {"comparison", "boolean operator", "operator", "off by one", "wrong variable", "missing statement"}
    assert kinds <= set(MUTATIONS)
    assert ("missing return" in kinds) == (language == "javascript")
    for mutation in made:
        tree = function_tree(mutation.source, language, function.owner)
        assert tree is not None
        assert own is not None
        assert tree.tokens != own.tokens
        assert "the least" in mutation.source  # comments stay


def test_a_bug_in_a_typed_language_keeps_to_parameters_of_one_type() -> None:
    text = """package a
func pick(name string, count int, other string) string {
	prepared := join(name, count)
	return prepared + name + "of some length"
}
"""
    made = mutations(function_of("go", text).source, "go", "", random.Random(0))
    wrong = [mutation.source for mutation in made if mutation.kind == "wrong variable"]
    assert wrong
    assert all("count + name" not in source and "join(count" not in source for source in wrong)
    assert any("join(other, count)" in source for source in wrong)


@pytest.mark.parametrize("language", FILES)
def test_a_test_is_matched_with_the_one_function_that_it_calls(language: str, tmp_path: Path) -> None:
    mined = mine(repository(tmp_path, language), MiningOptions(tasks=("write_test",), valid_share=0.0))
    (record,) = mined.tasks["write_test"].train
    question, answer = (turn["content"] for turn in record["chat_rounds"])
    assert codes(question) == [function_of(language).source + "\n"]
    (test,) = codes(answer)
    assert "from_below" in test.lower().replace(" ", "_").replace("frombelow", "from_below")
    assert test.count("\n") >= 3
    assert not test.startswith((" ", "\t"))


def test_a_test_that_calls_two_functions_is_matched_by_its_name_or_not_at_all(tmp_path: Path) -> None:
    repository(tmp_path, "go")
    code = tmp_path / "ranges" / "ranges.go"
    code.write_text(code.read_text() + "\nfunc Single(value int) int { return value }\n")
    test = tmp_path / "ranges" / "ranges_test.go"
    both = (
        "package ranges\n\nfunc Test{}(t *testing.T) {{\n\tif Clamp(Single(1), 2, 3) != 2 {{\n\t\tt.Error()\n\t}}\n}}\n"
    )
    options = MiningOptions(tasks=("write_test",), valid_share=0.0)
    test.write_text(both.format("Both"))
    assert mine(tmp_path, options).tasks["write_test"].train == []
    test.write_text(both.format("Clamp"))
    assert len(mine(tmp_path, options).tasks["write_test"].train) == 1
    test.write_text(both.format("Single"))  # which makes no example: it has no lines of its own
    assert mine(tmp_path, options).tasks["write_test"].train == []


def test_catch_and_junit_3_tests_are_tests_too(tmp_path: Path) -> None:
    repository(tmp_path, "java", "cpp")
    (tmp_path / "test" / "RangesTest.java").write_text(
        "public class RangesTest extends TestCase {\n    public void testClamp() {\n"
        "        assertEquals(2, Ranges.clamp(1, 2, 3));\n    }\n}\n"
    )
    (tmp_path / "src" / "ranges_test.cc").write_text(
        'TEST_CASE("clamps", "[ranges]") {\n    REQUIRE(ranges::clamp(1, 2, 3) == 2);\n}\n'
    )
    mined = mine(tmp_path, MiningOptions(tasks=("write_test",), valid_share=0.0))
    answers = [record["chat_rounds"][1]["content"] for record in mined.tasks["write_test"].train]
    assert sorted(answer.splitlines()[1] for answer in answers) == [
        'TEST_CASE("clamps", "[ranges]") {',
        "public void testClamp() {",
    ]


def test_six_languages_in_one_folder_make_examples_of_every_task_the_same_each_time(tmp_path: Path) -> None:
    repository(tmp_path, *FILES)
    (tmp_path / "ranges.py").write_text(
        'def clamp(value, low):\n    """Return the larger one of two."""\n    if value < low:\n        return low\n    return value + 0\n'
    )
    texts = []
    for _ in range(2):
        mined = mine(tmp_path, MiningOptions(valid_share=0.0))
        assert mined.functions == 6
        texts.append(json.dumps([vars(task) for task in mined.tasks.values()]))
    assert texts[0] == texts[1]
    languages = {name: {record["language"] for record in task.train} for name, task in mined.tasks.items()}
    assert languages.pop("write_test") == set(FILES)
    assert all(found == {*FILES, "python"} for found in languages.values())


def test_languages_can_be_chosen(tmp_path: Path) -> None:
    mined = mine(repository(tmp_path, *FILES), MiningOptions(languages=("go", "rust"), valid_share=0.0))
    assert languages_of(mined) == {"go", "rust"}


def languages_of(mined: Mined) -> set[str]:
    return {record["language"] for task in mined.tasks.values() for record in task.train}


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("cpp", "int f(int a) { return a + 1000000000 + 1000000000 + 1000000000; }\n", "no body of its own lines"),
        ("cpp", "struct A {\n  A(int b) {\n    this->b = b + 1000000000 + 1000000000;\n  }\n};\n", "special method"),
        ("go", "package a\nfunc F(a int) {\n\treturn\n}\n", "too short"),
        ("rust", "fn f() -> i64 {\n    unimplemented!(\"this function is to be written next week\")\n}\n", "only raises or passes"),
        ("java", "class A {\n  String f() {\n    return \"\"\"\n      a text of several lines of code\n      \"\"\";\n  }\n}\n", "indentation that cannot be moved"),
        ("javascript", "function f(a) {\n  return a +* 1000000000000000000000000000000;\n}\n", "does not parse"),
    ],
)  # fmt: skip
def test_a_function_that_makes_no_example_is_counted_with_its_reason(language: str, text: str, reason: str) -> None:
    skips: Counter[str] = Counter()
    assert list(mine_functions(module_of(language, text), skips)) == []
    assert skips == {f"function: {reason}": 1}


@pytest.mark.parametrize(
    ("language", "comment", "documents"),
    [
        ("go", "// F adds one to its argument.", True),
        ("go", "//go:noinline", False),
        ("go", "// return a + 1;", False),
        ("cpp", "/** Adds one to its argument. */", True),
        ("cpp", "/// Adds one to its argument.", True),
        ("cpp", "//////////////////////////////", False),
        ("rust", "/// Adds one to its argument.", True),
        ("rust", "// Adds one to its argument.", False),
        ("java", "/* Adds one to its argument. */", False),
        ("javascript", "// Adds one to its argument.", False),
    ],
)
def test_only_a_comment_that_documents_the_function_is_its_doc_comment(
    language: str, comment: str, documents: bool
) -> None:
    heads = {
        "go": "func f(a int) int {",
        "rust": "fn f(a: i64) -> i64 {",
        "javascript": "function f(a) {",
        "java": "int f(int a) {",
        "cpp": "int f(int a) {",
    }
    text = f"{comment}\n{heads[language]}\n    return a + 1000000000000000000000000000000000000000;\n}}\n"
    function = function_of(language, text)
    assert bool(function.docstring) == documents
    assert function.source.startswith(comment if documents else heads[language])
    apart = function_of(language, text.replace(comment, f"{comment}\n"))
    assert apart.docstring == ""  # a blank line is between them


@pytest.mark.parametrize("language", FILES)
def test_spans_are_whole_lines_blocks_and_expressions_of_the_body(language: str) -> None:
    function = function_of(language)
    found, source = spans(function), function.source
    lines = [source[slice(*span)] for span in found.lines]
    assert any(line.startswith("return low") and line.endswith("// the least") for line in lines)
    assert any(line.startswith("moved -= 1") for line in lines)
    (block,) = (source[slice(*span)] for span in found.blocks)
    assert block.strip() == next(line for line in lines if line.startswith("return low"))
    assert block.startswith((" ", "\t"))
    expressions = {source[slice(*span)] for span in found.expressions}
    assert {"value < low", "value < low && low < high"} <= expressions


@pytest.mark.parametrize("language", [*FILES, "python"])
def test_the_parts_of_a_gap_are_the_function_and_each_level_is_taken(language: str) -> None:
    function = python_function() if language == "python" else function_of(language)
    levels = set()
    for seed in range(20):
        example = TASKS["fill_middle"](function, random.Random(seed))
        parts = [example.fields[name] for name in ("prefix", "middle", "suffix")]
        assert "".join(parts) == function.source
        assert codes(example.prompt)[0].rstrip() == f"{parts[0]}<MISSING>{parts[2]}".rstrip()
        assert codes(example.answer)[0] == f"{parts[1].rstrip()}\n"
        levels.add(example.fields["level"])
    assert levels == {"line", "block", "expression"}


@pytest.mark.parametrize("language", [*FILES, "python"])
def test_the_next_line_and_the_next_block_go_on_where_the_question_ends(language: str) -> None:
    function = python_function() if language == "python" else function_of(language)
    for task in ("complete_line", "complete_block"):
        for seed in range(8):
            example = TASKS[task](function, random.Random(seed))
            begun, answer = codes(example.prompt)[0], codes(example.answer)[0]
            assert function.source.startswith(begun.rstrip())
            assert function.source[len(begun.rstrip()) :].split()[: len(answer.split())] == answer.split()
            assert (
                (answer.count("\n") == 1 and answer[0].strip() != "") if task == "complete_line" else answer[0] in " \t"
            )


def test_a_function_with_the_mark_of_a_gap_in_it_makes_no_gap() -> None:
    text = 'package a\nfunc f(a int) int {\n\tshow("<MISSING>")\n\treturn a + 1000000000000000000\n}\n'
    with pytest.raises(UnfitError, match="the mark of a gap"):
        TASKS["fill_middle"](function_of("go", text), random.Random(0))


def test_a_record_of_a_gap_has_the_parts_beside_the_chat(tmp_path: Path) -> None:
    mined = mine(repository(tmp_path, "go"), MiningOptions(tasks=("fill_middle",), valid_share=0.0))
    (record,) = mined.tasks["fill_middle"].train
    assert record["prefix"] + record["middle"] + record["suffix"] == function_of("go").source
    assert detect(record) == "chat_rounds"


def python_function() -> MinedFunction:
    import ast

    text = (
        "def clamp(value, low, high):\n    if value < low and low < high:\n        return low  # the least\n"
        "    moved = min(value, high) + 1\n    moved -= 1\n    return moved\n"
    )
    (function,) = mine_python_functions(SourceModule("ranges.py", text, ast.parse(text)), Counter())
    return function


def test_positions_count_characters_not_bytes() -> None:
    text = 'package a\nfunc f(a int) int {\n\tgreet("grüße aus Köln")\n\tb := a + 1\n\treturn b\n}\n'
    function = function_of("go", text)
    assert [function.source[slice(*span)] for span in spans(function).lines][1] == "b := a + 1"
    made = {mutation.source for mutation in mutations(function.source, "go", "", random.Random(0))}
    assert function.source.replace("a + 1", "a - 1") in made


def test_headers_are_cpp_only_beside_cpp_files(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("int f(int a);\n")
    assert source_files(tmp_path, ["cpp"], Counter()) == []
    (tmp_path / "a.cc").write_text("int f(int a) { return a; }\n")
    assert [file.name for file in source_files(tmp_path, ["cpp"], Counter())] == ["a.cc", "a.h"]
    assert language_of("a.c") == ""


def test_bad_files_and_folders_are_counted_and_nothing_waits(tmp_path: Path) -> None:
    import os

    repository(tmp_path, "go", "javascript")
    (tmp_path / "latin.go").write_bytes(b"package a // caf\xe9\n")
    (tmp_path / "binary.js").write_bytes(b"\0\0\0")
    (tmp_path / "large.rs").write_text("// x\n" * 2_200_000)
    (tmp_path / "app.min.js").write_text("x=1;" * 1000)
    os.mkfifo(tmp_path / "pipe.go")
    (tmp_path / "around.go").symlink_to("around.go")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".git").write_text("gitdir: ../.git/modules/sub\n")
    (tmp_path / "sub" / "own.go").write_text("package a\n")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "theirs.go").write_text("package a\n")
    skips = mine(tmp_path, MiningOptions(tasks=("repair_function",))).skips
    found = {reason: count for reason, count in skips.items() if reason.startswith(("file: ", "folder: "))}
    assert found == {
        "file: unknown or wrong encoding": 2,
        "file: over 1 MB": 1,
        "file: minified or generated": 1,
        "file: not a regular file": 1,
        "file: cannot be read": 1,
        "folder: a link": 1,
        "folder: a repository inside this one": 1,
    }


def test_windows_line_ends_do_not_come_through(tmp_path: Path) -> None:
    repository(tmp_path, "go")
    path = tmp_path / "ranges" / "ranges.go"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    mined = mine(tmp_path, MiningOptions(tasks=("complete_function",), valid_share=0.0))
    (record,) = mined.tasks["complete_function"].train
    assert "\r" not in json.dumps(record)
