"""Each rule keeps what is just inside its bounds and drops what is just outside."""

import json

import pytest

from mftcoder.curation.example import Example, fenced_blocks
from mftcoder.curation.filters.config import Filter, FilterConfig
from mftcoder.curation.filters.rules import PRESETS, RULES
from mftcoder.data.records.formats import read_record


def example(question: str, answer: str) -> Example:
    line = json.dumps({"instruction": question, "output": answer}).encode()
    return Example(read_record(line, format="auto", task="t", origin="f:1"), line)


def words(count: int) -> str:
    return " ".join(f"word{n}" for n in range(count))


def fenced(lines: int, language: str = "text") -> str:
    return f"```{language}\n" + "".join(f"line {n} of code\n" for n in range(lines)) + "```"


def answered(answer_words: int = 100, code_lines: int = 5, before: int = 50, blocks: int = 1) -> str:
    """An answer of so many words in all, of which `before` stand before the first block."""
    code = "\n\n".join([fenced(code_lines)] * blocks)
    rest = answer_words - before - len(code.split())
    return f"{words(before)}\n{code}\n{words(rest)}"


EVOL = Filter(FilterConfig.model_validate("evol_66k"))


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        (words(10), answered(), ""),
        (words(9), answered(), "question_words"),
        (words(1000), answered(), ""),
        (words(1001), answered(), "question_words"),
        (words(20), answered(answer_words=50, before=5), ""),
        (words(20), answered(answer_words=49, before=5), "answer_words"),
        (words(20), answered(answer_words=2000), ""),
        (words(20), answered(answer_words=2001), "answer_words"),
        (words(20), words(100), "code_blocks"),
        (words(20), answered(answer_words=200, blocks=2), "code_blocks"),
        (words(20), answered(code_lines=3), ""),
        (words(20), answered(code_lines=2), "code_lines"),
        (words(20), answered(answer_words=700, code_lines=100), ""),
        (words(20), answered(answer_words=700, code_lines=101), "code_lines"),
        (words(20), answered(answer_words=300, before=200), ""),
        (words(20), answered(answer_words=300, before=201), "words_before_code"),
    ],
)
def test_the_published_filters_keep_the_bound_itself_and_drop_what_is_beyond_it(
    question: str, answer: str, rule: str
) -> None:
    drop = EVOL.check(example(question, answer))
    assert (drop.rule if drop else "") == rule


PYTHON = "```python\n{}\n```"
LONG = "The quick brown fox jumps over the lazy dog. "
GENERAL = [
    ("open_fences", "Look:\n```python\nx = 1\n```", "Look:\n```python\nx = 1\n"),
    ("broken_python", PYTHON.format("x = 1"), PYTHON.format("x = = 1")),
    ("broken_python", "```java\nint x == 1\n```", "```py\nint x == 1\n```"),
    ("broken_python", "import java.util.List;\nclass A {}", "import os\n\ndef f(:\n    pass"),
    ("empty_functions", PYTHON.format("def f():\n    return 1"), PYTHON.format('def f():\n    """Do it."""\n    pass')),
    (
        "empty_functions",
        PYTHON.format("@abstractmethod\ndef f():\n    ..."),
        PYTHON.format("def f():\n    raise NotImplementedError()"),
    ),
    ("compression_ratio", LONG + words(100), LONG * 100),
    ("compression_ratio", "short " * 80, "short " * 400),  # below 512 bytes it does not apply
    ("repeated_lines", "\n".join([*map(str, range(100, 107)), *["100"] * 3]), "\n".join([*map(str, range(100, 106)), *["100"] * 4])),
    ("repeated_lines", "\n".join([*map(str, range(100, 110)), *["}"] * 9]), "\n".join(["return 1"] * 10)),
    ("alphanumeric_share", "a" * 25 + "-" * 75, "a" * 24 + "-" * 76),
    ("longest_line", "a" * 2000, "a" * 2001),
    ("mean_code_line", "```js\n" + "a" * 200 + "\n```", "```js\n" + "a" * 202 + "\n```"),
    ("generated_notes", "```c\nint x;\n```\nDo not edit it.", "```c\n// Auto-generated file\nint x;\n```"),
    ("refusals", "Sort it with sorted(x).", "I'm sorry, but I cannot help with that."),
    ("refusals", "Use `sorry` as the name of the class.", "As an AI language model, I have no opinion."),
    ("refusals", "可以这样写。", "抱歉，我不能回答这个问题。"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "inside", "outside"), GENERAL)
def test_general_rule_keeps_what_is_inside_and_drops_what_is_outside(rule: str, inside: str, outside: str) -> None:
    only = Filter(FilterConfig.model_validate([rule]))
    assert only.check(example("A question?", inside)) is None
    drop = only.check(example("A question?", outside))
    assert drop is not None
    assert drop.rule == rule


def test_every_rule_has_a_fixture_and_every_preset_names_rules() -> None:
    assert {rule for rule, *_ in GENERAL} == set(PRESETS["general"])
    assert {name for names in PRESETS.values() for name in names} == set(RULES)


def test_bounds_of_the_recipe_replace_those_of_the_table_and_false_leaves_a_rule_out() -> None:
    config = FilterConfig.model_validate({"preset": "evol_66k", "question_words": [3, None], "answer_words": False})
    assert config.rules["question_words"] == (3, None)
    assert list(config.rules) == ["question_words", "code_blocks", "code_lines", "words_before_code"]


def test_mistakes_of_a_filter_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"unknown rule 'longest_lines'\. Did you mean 'longest_line'") as caught:
        FilterConfig.model_validate({"longest_lines": True, "refusals": [3, 1], "preset": "evol"})
    assert "unknown preset 'evol'. Did you mean 'evol_66k'" in str(caught.value)
    assert "rule 'refusals': give [lowest, highest]" in str(caught.value)


def test_code_too_long_to_parse_is_not_judged() -> None:
    huge = PYTHON.format("x = = 1\n" * 200_000)
    assert Filter(FilterConfig.model_validate(["broken_python"])).check(example("A question?", huge)) is None


def test_a_fence_inside_a_longer_fence_is_code() -> None:
    blocks = fenced_blocks("````md\n```py\nx\n```\n````\nand\n~~~\ny\n~~~")
    assert [(block.language, block.code) for block in blocks] == [("md", "```py\nx\n```\n"), ("", "y\n")]
