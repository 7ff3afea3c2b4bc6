"""Code is parsed by its language, its language is guessed, and hostile code takes bounded work."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from mftcoder.curation import syntax
from mftcoder.errors import DataError

DATA = Path(os.environ.get("MFTCODER_SHARED", Path(__file__).parents[3].parent / "shared")) / "data"
CODE = {
    "python": "def add(a, b):\n    return a + b\n",
    "go": "package main\n\nfunc add(a int, b int) int {\n\treturn a + b\n}\n",
    "rust": "fn add(a: i64, b: i64) -> i64 {\n    let mut sum = a;\n    sum += b;\n    sum\n}\n",
    "java": "import java.util.List;\n\npublic class Sum {\n    public static int add(List<Integer> all) { return all.size(); }\n}\n",
    "cpp": "#include <vector>\n\ntemplate <typename T>\nT add(const std::vector<T>& all) { return all[0]; }\n",
    "javascript": "const add = (a, b) => {\n  return a === b ? `${a}` : a + b;\n};\n",
}


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    pytest.importorskip("tree_sitter")


@pytest.mark.parametrize("language", syntax.LANGUAGES)
def test_code_has_no_error_in_its_own_language_and_is_guessed_to_be_in_it(language: str) -> None:
    assert syntax.error_bytes(CODE[language], language) == 0
    assert syntax.guess_language(CODE[language]) == language


@pytest.mark.parametrize("language", syntax.LANGUAGES)
def test_code_that_was_cut_has_errors(language: str) -> None:
    tail = "    for (x" if language != "python" else "    return (x"
    assert (syntax.error_bytes(CODE[language] + tail, language) or 0) > 0


def test_a_missing_token_counts_one_byte() -> None:
    assert syntax.error_bytes("int f() { return 1 }", "java") == 1


def test_offsets_are_those_of_utf8_bytes() -> None:
    tree = syntax.parse("é = '日本'\n", "python")
    assert tree is not None
    assert tree.root_node.end_byte == len("é = '日本'\n".encode())


@pytest.mark.parametrize(("language", "piece"), [("javascript", "->"), ("go", "->"), ("java", "a<")])
def test_code_that_takes_too_much_work_is_not_parsed(language: str, piece: str) -> None:
    assert syntax.parse(piece * 20_000, language) is None
    assert syntax.error_bytes(piece * 20_000, language) is None


def test_code_that_is_too_long_is_not_parsed() -> None:
    assert syntax.parse("x = 1\n" * 200_000, "python") is None


@pytest.mark.parametrize("language", syntax.LANGUAGES)
def test_deep_nesting_and_noise_are_counted_without_a_crash(language: str) -> None:
    for code in ("(" * 20_000, "{" * 20_000, "\0" * 1000, "a < b ? " * 100, "\ud800"):
        assert syntax.error_bytes(code, language) != 0 or code == "\ud800"


def test_blank_code_has_no_language() -> None:
    assert syntax.guess_language(" \n") is None


def test_most_published_solutions_are_guessed_right() -> None:
    """HumanEval-X: 980 of all 984 solutions are; this test takes every eighth problem of each language."""
    if not (DATA / "humanevalx").is_dir():
        pytest.skip("needs the shared data")
    right = total = 0
    for language in syntax.LANGUAGES:
        name = "js" if language == "javascript" else language
        with gzip.open(DATA / f"humanevalx/{name}.jsonl.gz") as file:
            for record in list(map(json.loads, file))[::8]:
                total += 1
                right += syntax.guess_language(record["prompt"] + record["canonical_solution"]) == language
    assert right >= 0.98 * total


def test_a_missing_grammar_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tree_sitter_rust", None)
    syntax._grammar.cache_clear()
    with pytest.raises(DataError, match=r"tree-sitter-rust, which is not installed.*mftcoder\[curate\]"):
        syntax.parse("fn f() {}", "rust")
