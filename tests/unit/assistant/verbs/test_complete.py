"""A completion adds to the code and takes nothing from it."""

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.verbs.complete import checked_completion


def refused(folder: Path, name: str, before: str, text: str, after: str) -> str:
    """The code of the refusal; empty for none."""
    (folder / name).write_text(before + after)
    try:
        checked_completion(WorkingFolder(folder).read(name), before, after, text, block=False)
    except RefusedAnswer as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    "name, before, text, after",
    [
        ("a.py", "x = ", "1  #", " + f()\n"),
        ("a.js", "let x = ", "1; //", " + f()\n"),
        ("a.go", "package a\n\nvar x = ", "1 //", " + f()\n"),
        ("a.js", "let x = 1 /", "/ the half", " f()\n"),
    ],
)
def test_code_behind_the_position_does_not_become_a_comment(
    tmp_path: Path, name: str, before: str, text: str, after: str
) -> None:
    assert refused(tmp_path, name, before, text, after) == "outside"


@pytest.mark.parametrize(
    "name, before, text, after",
    [
        ("a.py", "x = ", "1  # one", "\ny = 2  # two\n"),
        ("a.py", "x = 1  # the ", "number", " of things\n"),
        ("a.py", "x = 1  #", " one", "\n"),
        ("a.js", "let x = ", "1 /* one */", " + f()\n"),
        ("a.js", "/* a ", "long", " text */\nf()\n"),
    ],
)
def test_comments_of_its_own_are_accepted(tmp_path: Path, name: str, before: str, text: str, after: str) -> None:
    assert refused(tmp_path, name, before, text, after) == ""


def test_a_completion_may_end_its_lines_as_windows_does(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.py", "x = ", "1\r\n", "\n") == ""


def test_the_encoding_of_a_file_stays(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.py", "", "# coding: latin-1", "\nx = 1\n") == "directive"
    assert refused(tmp_path, "a.py", "", "# coding: utf-8", "\nx = 1\n") == ""


@pytest.mark.parametrize("lie", ["((((", "((((]]]]", "))))", "[", "{", "return return", "1 1 1"])
def test_in_a_file_with_a_syntax_error_no_fault_is_added(tmp_path: Path, lie: str) -> None:
    before, after = "def f(m):\n    return [elem for (k,", "\n\n\ndef g():\n    return 1\n"
    assert refused(tmp_path, "a.py", before, lie, after) == "does_not_parse"
    assert refused(tmp_path, "a.py", before, " elem) in m]", after) == ""


@pytest.mark.parametrize("lie", ["((((", "}}", "return return"])
def test_an_error_elsewhere_hides_no_new_one(tmp_path: Path, lie: str) -> None:
    before, after = "def broken(:\n    pass\n\n\ndef f(a):\n    return ", "\n\n\ndef g():\n    return 1\n"
    assert refused(tmp_path, "a.py", before, lie, after) == "does_not_parse"
    assert refused(tmp_path, "a.py", before, "max(a, [1][0])", after) == ""


def test_brackets_of_templates_and_strings_are_no_faults(tmp_path: Path) -> None:
    before, after = "let 1a = 2;\nlet x = ", ";\nfunction g() {\n  return 1;\n}\n"
    assert refused(tmp_path, "a.js", before, "`a ${b} (((`", after) == ""
    assert refused(tmp_path, "a.js", before, "`a ${b`", after) == "does_not_parse"


@pytest.mark.parametrize(
    "name, before, lie, honest, after",
    [
        ("a.js", "function f(x) {\n  ", "return 1; } function g() {", "g(() => { x(); });", "\n  return x;\n}\n"),
        ("a.js", "if (a) {\n  ", "} else {", "if (b) { c(); } else { d(); }", "\n  e();\n}\n"),
        ("a.go", "package a\n\nfunc f() int {\n\t", "return 1 }; func g() int {", "g(func() {})", "\n\treturn 2\n}\n"),
        ("a.cpp", "int f() {\n  ", "} int g() {", "int y = g();", "\n  return 1;\n}\n"),
        ("a.rs", "fn f() -> i32 {\n    ", "1 } fn g() -> i32 {", "let y = { 1 };", "\n    2\n}\n"),
        (
            "A.java",
            "class A {\n  int f() {\n    ",
            "return 1; } int g() {",
            "int[] y = {1};",
            "\n    return 2;\n  }\n}\n",
        ),
        ("a.py", "x = f(", "1) + g(2", "1, g(2)", ")\n"),
        ("a.cpp", "#ifdef A\nint f();\n", "#else", "int h();", "\nint g();\n#endif\n"),
        ("a.go", "package a\n\nvar x = ", "`", "`a`", "\nvar y = 1 // a `\n"),
        ("a.cpp", "int f() {\n  ", 'auto s = R"(', 'auto s = R"(a)";', '\n  return 1; // )" \n;}\n'),
        ("a.cpp", "int f() {\n", "#define A \\", "#define A 1", "\n  return 1;\n}\n"),
        ("a.cpp", "int f() {\n  ", "f(); \\", "f();", "\n  return 1;\n}\n"),
    ],
)
def test_code_behind_the_position_stays_in_its_block_and_is_no_text(
    tmp_path: Path, name: str, before: str, lie: str, honest: str, after: str
) -> None:
    assert refused(tmp_path, name, before, lie, after) == "outside"
    assert refused(tmp_path, name, before, honest, after) == ""


def test_a_block_that_is_open_may_be_closed(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.js", "if (a) {\n  b();\n}\n", "else {", "\n  c();\n}\n") == ""
    assert refused(tmp_path, "a.py", "x = f(g(1, ", "2)", ")\n") == ""


@pytest.mark.parametrize(
    "name, before, lie, honest, after",
    [
        ("A.java", "class A {\n  ", "// \\u000a int y;", "// \\u00e9", "\n}\n"),
        ("A.java", "class A {\n  ", 'String s = "\\u0022; //";', 'String s = "\\\\u0022";', "\n}\n"),
        ("a.cpp", "int f() {\n  ", "// what??/", "// what?/", "\n  return 1;\n}\n"),
    ],
)
def test_what_the_compiler_reads_before_texts_and_comments_is_refused(
    tmp_path: Path, name: str, before: str, lie: str, honest: str, after: str
) -> None:
    assert refused(tmp_path, name, before, lie, after) == "hidden_code"
    assert refused(tmp_path, name, before, honest, after) == ""


def test_a_doc_comment_of_rust_needs_something_to_document(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.rs", "fn f() -> i32 {\n    ", "/// one", "\n    1\n}\n") == "directive"
    assert refused(tmp_path, "a.rs", "", "/// one", "\nfn f() {}\n") == ""
