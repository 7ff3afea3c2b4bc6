"""Code is read as tokens in which names do not matter: what changes with a name, with layout, and with what the code does."""

import ast

import numpy as np
import pytest

from mftcoder.curation.duplicates.leaves import NAME
from mftcoder.curation.duplicates.tokens import CodeTokens, code_and_words, code_tokens, encode, python_tokens

PYTHON = '''def close_pairs(numbers, limit):
    """Return how many pairs of neighbours are nearer than the limit."""
    count = 0
    for one, other in zip(numbers, numbers[1:]):
        if abs(one - other) < limit:
            count += 1
    return count
'''
PYTHON_RENAMED = """def f(list: list, d: float) -> int:
    n = 0x0  # a comment
    for a, b in (zip(list,
                     list[1:])):
        if abs(a - b) < d: n += 1
    return n
"""
PAIRS = {
    "python": (PYTHON, PYTHON_RENAMED),
    "java": (
        "class A { int sum(List<Integer> xs) { int t = 0; for (int x : xs) { t += x; } return t; } }",
        "class B {\n  // adds\n  int all(List<Integer> v) {\n int s = 0;\n for (int e : v) {\n s += e;\n }\n return s;\n }\n}",
    ),
    "javascript": (
        "function f(a, b) { return [a, b].map(x => x + 'k') }",
        'function add(one, two) {\n  /* a list */\n  return [one, two,].map(y => y + "k");\n}',
    ),
    "go": (
        "package main\nfunc f(a int, b int) int { fmt.Println(a); return a + b }",
        "package main\n\nfunc add(one int, two int) int {\n\tfmt.Println(one) // shown\n\treturn one + two\n}",
    ),
    "rust": (
        'fn f(a: &str) -> usize { println!("{}", a); a.len() }',
        'fn size(text: &str) -> usize {\n    println!("{}", text,);\n    text.len()\n}',
    ),
    "cpp": (
        "int f(std::vector<int> a) { int s = 0; for (int x : a) s += x; return std::abs(s); }",
        "int total(std::vector<int> all)\n{\n  int t = 0;\n  for (int e : all)\n    t += e;\n  return std::abs(t);\n}",
    ),
}


def tokens(code: str, language: str) -> CodeTokens:
    found = code_tokens(code, language)
    assert found is not None
    return found


@pytest.mark.parametrize("language", PAIRS)
def test_names_comments_and_layout_do_not_show(language: str) -> None:
    pytest.importorskip("tree_sitter")
    one, other = (tokens(code, language) for code in PAIRS[language])
    assert one.fingerprint() == other.fingerprint()
    assert np.array_equal(one.ngrams(10), other.ngrams(10))
    assert len(one.ngrams(10)) == len(one.hashes) - 9 > 0


@pytest.mark.parametrize(
    ("language", "change"),
    [
        ("python", ("abs(a", "len(a")),
        ("python", ("< d", "> d")),
        ("python", ("0x0", "1")),
        ("python", ("a - b", "b - a")),
        ("java", ("+=", "-=")),
        ("java", ("Integer", "String")),
        ("javascript", (".map", ".filter")),
        ("javascript", ('"k"', '"j"')),
        ("go", ("Println", "Printf")),
        ("rust", ("text.len", "text.count")),
        ("rust", ("println", "eprintln")),
        ("cpp", ("std::abs", "std::log")),
    ],
)
def test_what_the_code_does_shows(language: str, change: tuple[str, str]) -> None:
    pytest.importorskip("tree_sitter")
    one, other = PAIRS[language]
    assert tokens(other.replace(*change), language).fingerprint() != tokens(one, language).fingerprint()


def test_a_function_that_is_its_docstring_alone_is_told_by_it() -> None:
    one, other, same = (
        f'def {name}(self):\n    """{text}"""' for name, text in (("f", "Go."), ("g", "Stop."), ("h", "Go."))
    )
    assert tokens(one, "python").fingerprint() == tokens(same, "python").fingerprint()
    assert tokens(one, "python").fingerprint() != tokens(other, "python").fingerprint()


def test_a_name_is_the_distance_to_its_last_use_inside_the_ngram() -> None:
    found = encode([(NAME, "a"), ("op", "+"), (NAME, "b"), ("op", "+"), (NAME, "a")])
    assert found.distances.tolist() == [0, -1, 0, -1, 4]
    assert len(set(found.ngrams(3).tolist())) == 2  # new + new, twice: the first `a` lies before the last run
    assert len(set(found.ngrams(5).tolist())) == 1


def test_an_inserted_statement_changes_only_the_ngrams_that_it_touches() -> None:
    lines = PYTHON.split("\n")
    longer = "\n".join([*lines[:3], "    print(limit)", *lines[3:]])
    one, other = (set(tokens(code, "python").ngrams(10).tolist()) for code in (PYTHON, longer))
    assert len(one - other) <= 10 + 9  # where the statement stands, and where the head says how many there are


@pytest.mark.parametrize(
    "code",
    ["x = " + " + ".join(["a"] * 900), "x = 0x" + "f" * 5000, "import os as o\nfrom a import *\nglobal o\n\n\nasync def f(*, k=None, **r): ..."],
    ids=["deep", "long number", "odd"],
)  # fmt: skip
def test_odd_python_has_tokens(code: str) -> None:
    assert len(python_tokens(ast.parse(code)).hashes) >= 2


def test_a_text_is_its_words_and_its_codes() -> None:
    pytest.importorskip("tree_sitter")

    def shape(text: str) -> list[str]:
        words, *codes = code_and_words(text)
        return [" ".join(str(words).replace("`", "").split()), *("code" for _ in codes)]

    java = PAIRS["java"][0]
    assert shape("Only words.") == ["Only words."]
    assert shape(f"Here:\n```python\n{PYTHON}```\nand\n```java\n{java}\n```\nDone.") == [
        "Here: python and java Done.",
        "code",
        "code",
    ]
    assert shape(PYTHON) == ["", "code"]
    assert shape(java) == ["", "code"]
    assert shape("```python\nif:\n```") == ["python if:"]
    assert shape("```sql\nSELECT 1\n```") == ["sql SELECT 1"]
