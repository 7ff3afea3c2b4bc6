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
