"""What counts as the same program with other comments."""

import pytest

pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.checks.comments import added_examples, refuse_other_code
from mftcoder.assistant.rounds import RefusedAnswer

CODE = {
    "python": "def f(x):\n    return x + 1\n",
    "java": "class A {\n    int f(int x) {\n        return x + 1;\n    }\n}\n",
    "javascript": "function f(x) {\n  return x + 1\n}\n",
    "go": "package a\n\nfunc f(x int) int {\n\treturn x + 1\n}\n",
    "rust": "fn f(x: i32) -> i32 {\n    x + 1\n}\n",
    "cpp": "int f(int x) {\n    return x + 1;\n}\n",
}
MARK = dict.fromkeys(CODE, "//") | {"python": "#"}


def refused(before: str, after: str, language: str) -> str:
    """The code of the refusal; empty for none."""
    try:
        refuse_other_code(before.encode(), after.encode(), language)
    except RefusedAnswer as error:
        return error.code
    return ""


@pytest.mark.parametrize("language", CODE)
def test_comments_on_own_lines_and_behind_code_are_no_change(language: str) -> None:
    code, mark = CODE[language], MARK[language]
    first, rest = code.split("x + 1", 1)
    end, rest = rest.split("\n", 1)
    assert refused(code, f"{mark} A file.\n{first}x + 1{end}  {mark} the next one\n{rest}", language) == ""


@pytest.mark.parametrize("language", CODE)
def test_any_other_token_is_a_change(language: str) -> None:
    assert refused(CODE[language], CODE[language].replace("x + 1", "x + 2"), language) == "code_changed"
    assert refused(CODE[language], CODE[language].replace("x + 1", "1 + x"), language) == "code_changed"


@pytest.mark.parametrize("language", CODE)
def test_code_that_became_a_comment_is_refused(language: str) -> None:
    assert refused(CODE[language], CODE[language].replace("x + 1", f"x {MARK[language]} + 1"), language) != ""


@pytest.mark.parametrize(
    "language, comment",
    [
        ("python", "# type: ignore"),
        ("python", "# vim: set fileencoding=latin-1 :"),
        ("java", "// \\u000a System.exit(1);"),
        ("javascript", "//# sourceMappingURL=http://example.org/x"),
        ("javascript", "// eslint-disable-next-line"),
        ("go", "//go:build ignore"),
        ("go", "// +build ignore"),
        ("rust", "// #[rustfmt::skip]"),
        ("cpp", "// NOLINT"),
        ("python", "# add # noqa"),
        ("python", "# add # type: ignore"),
        ("python", "# pyre-ignore[7]"),
        ("python", "# NOSONAR"),
        ("java", "// add NOSONAR"),
        ("java", "/** Add.\n * @deprecated use g\n */"),
        ("javascript", "/*#__PURE__*/"),
        ("javascript", "// @flow"),
        ("javascript", "/* v8 ignore next */"),
        ("javascript", "// deno-lint-ignore no-explicit-any"),
        ("go", "//lint:ignore U1000 used"),
        ("go", "// Output: 2"),
        ("rust", "/// ~~~\n/// panic!()\n/// ~~~"),
        ("rust", "/// Add.\n///\n///     panic!()"),
        ("cpp", "// cppcheck-suppress zerodiv"),
    ],
)
def test_a_comment_that_a_tool_obeys_is_refused(language: str, comment: str) -> None:
    assert refused(CODE[language], f"{comment}\n{CODE[language]}", language) == "directive"


@pytest.mark.parametrize(
    "language, comment",
    [
        ("python", "# type of x, as mypy and ruff see it: a number"),
        ("java", "// the old way is deprecated, and Checkstyle is content"),
        ("javascript", "// V8 and deno do it fast; prettier code of webpack"),
        ("go", "// the output of f is x plus one"),
        ("rust", "/// Add.\n///\n/// * x - a number,\n///     of 32 bits"),
        ("cpp", "// falls through to the next case"),
    ],
)
def test_plain_words_about_tools_are_no_directive(language: str, comment: str) -> None:
    assert refused(CODE[language], f"{comment}\n{CODE[language]}", language) == ""


@pytest.mark.parametrize("language", CODE)
def test_a_directive_stays_at_its_place(language: str) -> None:
    mark = {"python": "# noqa", "rust": "// clippy::all", "go": "//nolint", "cpp": "// NOLINT"}.get(
        language, "// nosonar"
    )
    first, rest = CODE[language].split("\n", 1)
    before = f"{first}  {mark}\n{rest}"
    assert refused(before, f"{mark}\n{CODE[language]}", language) == "directive"
    assert refused(before, f"{MARK[language]} A file.\n{before}", language) == ""


def test_a_backslash_that_joins_a_comment_with_the_next_line_is_refused() -> None:
    joined = CODE["cpp"].replace("    return", "    // the next one \\\n    return")
    assert refused(CODE["cpp"], joined, "cpp") != ""
    assert refused(CODE["cpp"], f"// the next one \\\n{CODE['cpp']}", "cpp") != ""


def test_a_doc_comment_inside_a_rust_function_is_refused() -> None:
    assert refused(CODE["rust"], CODE["rust"].replace("    x", "    /// the next\n    x"), "rust") == "directive"
    assert refused(CODE["rust"], f"/// The next one.\n{CODE['rust']}", "rust") == ""


def test_a_line_break_behind_return_is_a_change_in_javascript() -> None:
    assert refused(CODE["javascript"], CODE["javascript"].replace("return", "return // now\n "), "javascript") != ""
    assert refused(CODE["javascript"], CODE["javascript"].replace("return", "return /* now\n */"), "javascript") != ""


def test_docstrings_may_come_but_not_go() -> None:
    bare, documented = CODE["python"], 'def f(x):\n    """Add.\n\n    >>> f(1)\n    2\n    """\n    return x + 1\n'
    assert refused(bare, documented, "python") == ""
    assert added_examples(bare, documented)
    assert refused(documented, bare, "python") == "lost_docstring"
    assert refused(documented, documented.replace(">>> f(1)\n    2", "Always."), "python") == "lost_docstring"
    assert refused(documented, documented.replace("Add.", "Add one."), "python") == ""
    assert refused(documented, documented.replace("    2\n", "    3\n"), "python") == "lost_docstring"
    for reads in ("print(f.__doc__)\n", "print(inspect.getdoc(f))\n"):
        assert (
            refused(documented + reads, documented.replace("Add.", "Add one.") + reads, "python") == "docstring_is_read"
        )
        assert refused(bare + reads, documented + reads, "python") == "docstring_is_read"


def test_a_docstring_moves_no_directive() -> None:
    before = "def f(x):  # noqa\n    # fmt: off\n    return x + 1  # type: ignore\n"
    assert refused(before, before.replace("    # fmt", '    """Add one."""\n    # fmt'), "python") == ""


def test_a_text_that_is_no_docstring_is_code() -> None:
    assert refused(
        CODE["python"], CODE["python"].replace("    return", '    x = x\n    """Doc."""\n    return'), "python"
    )
