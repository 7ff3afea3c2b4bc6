"""Each rule keeps what is just inside its bounds and drops what is just outside."""

import importlib.util
import json
import sys

import pytest

from mftcoder.curation.example import Example, fenced_blocks
from mftcoder.curation.filters.config import Filter, FilterConfig
from mftcoder.curation.filters.rules import PRESETS, RULES
from mftcoder.data.records.formats import read_record
from mftcoder.errors import DataError


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
    drop = EVOL.check_all([example(question, answer)])[0]
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
    ("repeated_ngrams", words(66) + " " + words(42), words(66) + " " + words(59)),
    ("repeated_ngrams", words(9) * 5 + " x", " ".join([words(10)] * 8)),  # below 50 n-grams it does not apply
    ("alphanumeric_share", "a" * 25 + "-" * 75, "a" * 24 + "-" * 76),
    ("longest_line", "a" * 2000, "a" * 2001),
    ("mean_code_line", "```js\n" + "a" * 200 + "\n```", "```js\n" + "a" * 202 + "\n```"),
    ("generated_notes", "```c\nint x;\n```\nDo not edit it.", "```c\n// Auto-generated file\nint x;\n```"),
    ("placeholders", "```python\ntodo = [1]  # the items of a list\n```\nAdd it to your code here.", "```python\n# Your code here\n```"),
    ("placeholders", "```js\n// your code is slow\n```", "```js\n// TODO: sort\n```"),
    ("placeholders", "```c\nint here; /* the code of a key */\n```", "```c\n/* logic goes here */\n```"),
    ("refusals", "Sort it with sorted(x).", "I'm sorry, but I cannot help with that."),
    ("refusals", "Use `sorry` as the name of the class.", "As an AI language model, I have no opinion."),
    ("refusals", "可以这样写。", "抱歉，我不能回答这个问题。"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "inside", "outside"), GENERAL)
def test_general_rule_keeps_what_is_inside_and_drops_what_is_outside(rule: str, inside: str, outside: str) -> None:
    only = Filter(FilterConfig.model_validate([rule]))
    kept, drop = only.check_all([example("A question?", inside), example("A question?", outside)])
    assert kept is None
    assert drop is not None
    assert drop.rule == rule


def test_every_rule_has_a_fixture_and_every_preset_names_rules() -> None:
    fixtures = {rule for rule, *_ in GENERAL} | {rule for rule, *_ in CHOSEN}
    assert fixtures | set(PRESETS["evol_66k"]) == set(RULES)
    assert {name for names in PRESETS.values() for name in names} <= set(RULES)


def test_the_published_preset_has_the_published_rules_and_bounds() -> None:
    assert FilterConfig.model_validate("evol_66k").rules == {
        "question_words": (10, 1000),
        "answer_words": (50, 2000),
        "code_blocks": (1, 1),
        "code_lines": (3, 100),
        "words_before_code": (None, 200),
    }


AWS_KEY = "AKIA" + "Q3EGYZ2R7XK5LMNO"
GITHUB_TOKEN = "ghp" + "_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
JAVA = "```java\nint f(int a) {\n  return a;\n}\n```"
ENGLISH = "Please write a function that sorts the numbers and returns the largest one of them."
GERMAN = "Bitte schreibe eine Funktion, welche die Zahlen sortiert und die größte von ihnen zurückgibt."
CHOSEN = [
    ("broken_code", "Q?", "```go\nx := f(1)\n```", "Q?", "```go\nx := f(1\n```"),
    ("broken_code", "Q?", "```csharp\nx := = f(1\n```", "Q?", "```C++\nint f( { return 1; }\n```"),
    ("broken_code", "Q?", PYTHON.format("x = = 1"), "Q?", "```rust\nfn f() -> { 1 }\n```"),
    ("other_language", "Write it in Java.", JAVA, "Write it in Rust.", JAVA),
    ("other_language", "A Python function, please.", "```py\nf(1)\n```\n```java\nint x;\n```", "A Python function, please.", JAVA),
    ("other_language", "Translate this Python code to Java.", PYTHON.format("x = 1"), "Translate this to Java.", PYTHON.format("x = 1")),
    ("other_language", "A Python script with C++?", JAVA, "A Python script?", "int f(int a) {\n  return a;\n}"),
    ("other_language", "A C++ program, please.", "```c\nint x;\n```", "A C++ program, please.", "```kotlin\nval x = 1\n```"),
    ("other_language", "How do I install it in Python?", "```bash\npip install x\n```", "How is it done in Go?", "def f(a):\n    return a\n"),
    ("lint_errors", "Q?", PYTHON.format("import os\nprint(os.name)"), "Q?", PYTHON.format("import os\nprint(1)")),
    ("lint_errors", "Q?", "No code at all.", "Q?", PYTHON.format("x = = 1")),
    ("secrets", "Q?", "key = os.environ['KEY']", "Q?", f"key = '{AWS_KEY}'"),
    ("secrets", "Q?", "token = 'your-token'", f"Why is {GITHUB_TOKEN} refused?", "It is too old."),
    ("secrets", "Q?", "-----BEGIN PUBLIC KEY-----", "Q?", "-----BEGIN RSA PRIVATE KEY-----"),
    ("secrets", "Q?", "postgres://localhost/db", "Q?", "postgres://root:hunter2@db.local/x"),
    ("personal_data", "Q?", "Write to user@example.com.", "Q?", "Write to m.kowalska@wroclaw.pl."),
    ("personal_data", "Q?", "W = a@b.T; @app.get('/')", "From k.ito@kyoto.ac.jp: why?", "So."),
    ("personal_data", "Q?", "Call 555-123-4567.", "Q?", "Call +49 30 901820 37."),
    ("personal_data", "Q?", "Call 1-800-123-4567 or 2024-10-20.", "Q?", "Call (212) 736-5000."),
    ("personal_data", "Q?", "ping 192.168.0.1, version 4.18.2.1", "Q?", "ping 93.184.216.34"),
    ("prose_language", ENGLISH, "x = 1", GERMAN, "x = 1"),
    ("prose_language", "写一个函数，对列表中的数字进行排序，并返回其中最大的一个。", "x", "Напиши функцию, которая сортирует числа и возвращает большее.", "x"),
    ("prose_language", "Funktion?", "def f(): pass", "Frage?", f"{GERMAN}\n```py\nf()\n```"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "question", "answer", "bad_question", "bad_answer"), CHOSEN)
def test_rule_that_is_chosen_by_name_keeps_what_is_inside_and_drops_what_is_outside(
    rule: str, question: str, answer: str, bad_question: str, bad_answer: str
) -> None:
    if RULES[rule].needs:
        pytest.importorskip(RULES[rule].needs)
    only = Filter(FilterConfig.model_validate([rule]))
    kept, drop = only.check_all([example(question, answer), example(bad_question, bad_answer)])
    assert kept is None
    assert drop is not None
    assert drop.rule == rule


def test_bounds_of_the_recipe_replace_those_of_the_table_and_false_leaves_a_rule_out() -> None:
    config = FilterConfig.model_validate({"preset": "evol_66k", "question_words": [3, None], "answer_words": False})
    assert config.rules["question_words"] == (3, None)
    assert list(config.rules) == ["question_words", "code_blocks", "code_lines", "words_before_code"]


def test_mistakes_of_a_filter_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"unknown rule 'longest_lines'\. Did you mean 'longest_line'") as caught:
        FilterConfig.model_validate({"longest_lines": True, "refusals": [3, 1], "preset": "evol"})
    assert "unknown preset 'evol'. Did you mean 'evol_66k'" in str(caught.value)
    assert "rule 'refusals': give [lowest, highest]" in str(caught.value)
    with pytest.raises(ValueError, match="'general' is a preset, not a rule: name one preset alone"):
        FilterConfig.model_validate(["general", "refusals"])


def test_code_too_long_to_parse_is_not_judged() -> None:
    huge = PYTHON.format("x = = 1\n" * 200_000)
    assert Filter(FilterConfig.model_validate(["broken_python"])).check_all([example("A question?", huge)]) == [None]


def test_only_a_line_that_begins_with_its_fence_opens_or_closes_a_block() -> None:
    text = "say ``` here\n ``` a`b\nsee ~~~\n\t~~~Go x\nz = 1 # ```\n```\n~~~ no\n  ~~~~  \nend ```\n```"
    blocks = fenced_blocks(text)
    assert [(block.language, block.code, block.is_closed) for block in blocks] == [
        ("go", "z = 1 # ```\n```\n~~~ no\n", True),
        ("", "", False),
    ]
    assert [text[block.start :][:5] for block in blocks] == ["\t~~~G", "```"]


def test_a_fence_inside_a_longer_fence_is_code() -> None:
    blocks = fenced_blocks("````md\n```py\nx\n```\n````\nand\n~~~\ny\n~~~")
    assert [(block.language, block.code) for block in blocks] == [("md", "```py\nx\n```\n"), ("", "y\n")]


def test_names_of_the_recipe_replace_those_of_the_table() -> None:
    pytest.importorskip("py3langid")
    keeps_german = Filter(FilterConfig.model_validate({"prose_language": ["de"]}))
    kept, drop = keeps_german.check_all([example(GERMAN, "x"), example(ENGLISH, "x")])
    assert kept is None
    assert drop is not None
    assert drop.value == "en"
    with pytest.raises(ValueError, match="rule 'prose_language': give a list of names"):
        FilterConfig.model_validate({"prose_language": [1, 2]})


def test_a_missing_library_is_named_with_the_rules_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    with pytest.raises(DataError) as caught:
        Filter(FilterConfig.model_validate(["broken_code", "prose_language", "other_language", "refusals"]))
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "filter: 'prose_language' needs py3langid",
        "filter: 'broken_code' and 'other_language' needs tree-sitter",
    ]


CLEAN_ANSWER = (
    "The largest number is found in one pass over the list; an empty list has none, so the function returns None for it. "
    "Each number is compared with the largest one that was seen so far, and takes its place if it is larger than that one. "
    "The list itself is not changed.\n```python\n"
    "def largest(numbers):\n    best = None\n    for number in numbers:\n        if best is None or number > best:\n"
    "            best = number\n    return best\n```"
)
CLEAN_QUESTION = "Write a Python function that returns the largest number of a list, or None if the list is empty."
PLANTED = {
    "question_words": ("Write a Python function for it.", CLEAN_ANSWER),
    "answer_words": (CLEAN_QUESTION, "Like this:" + CLEAN_ANSWER[CLEAN_ANSWER.index("\n```") :]),
    "code_blocks": (CLEAN_QUESTION, CLEAN_ANSWER + "\nor\n```python\nmax(range(3))\n```"),
    "code_lines": (CLEAN_QUESTION, CLEAN_ANSWER.split("    best")[0].replace("numbers):\n", "x): return x\n```")),
    "words_before_code": (CLEAN_QUESTION, words(200) + "\n" + CLEAN_ANSWER),
    "open_fences": (CLEAN_QUESTION, CLEAN_ANSWER.removesuffix("\n```")),
    "broken_python": (CLEAN_QUESTION, CLEAN_ANSWER.replace("is None or", "is None or or")),
    "broken_code": (CLEAN_QUESTION.replace("Python", "Go"), CLEAN_ANSWER.replace("```python", "```go")),
    "empty_functions": (CLEAN_QUESTION, CLEAN_ANSWER.replace("    return best", "    return best\n\ndef rest():\n    pass")),
    "compression_ratio": (CLEAN_QUESTION, "many " * 900 + CLEAN_ANSWER.replace("pass over", "way through")),
    "repeated_lines": (CLEAN_QUESTION, CLEAN_ANSWER.replace("    return best", "    print(best)\n" * 12 + "    return best")),
    "repeated_ngrams": (CLEAN_QUESTION, (CLEAN_ANSWER.split("\n")[0] + " ") * 2 + CLEAN_ANSWER),
    "alphanumeric_share": (CLEAN_QUESTION, "".join(chr(0x2500 + n * n % 251) for n in range(1500)) + "\n" + CLEAN_ANSWER),
    "longest_line": (CLEAN_QUESTION, "".join(chr(97 + n % 26) * (n % 7) for n in range(800)) + "\n" + CLEAN_ANSWER),
    "mean_code_line": (CLEAN_QUESTION, CLEAN_ANSWER.replace("best = None", "best = None  # " + "".join(chr(97 + n % 26) * (n % 5) for n in range(500)))),
    "generated_notes": (CLEAN_QUESTION, CLEAN_ANSWER.replace("def largest", "# Generated by a tool\ndef largest")),
    "placeholders": (CLEAN_QUESTION, CLEAN_ANSWER.replace("def largest", "# TODO: largest\ndef largest")),
    "refusals": (CLEAN_QUESTION, "I'm sorry, but I cannot say more than this. " + CLEAN_ANSWER),
    "other_language": (CLEAN_QUESTION.replace("Python", "Rust"), CLEAN_ANSWER),
    "lint_errors": (CLEAN_QUESTION, CLEAN_ANSWER.replace("return best", "return bset")),
    "secrets": (CLEAN_QUESTION, CLEAN_ANSWER.replace("best = None\n", f"best = None  # {AWS_KEY}\n")),
    "personal_data": (CLEAN_QUESTION + " Thanks, k.ito@kyoto.ac.jp", CLEAN_ANSWER),
    "prose_language": (GERMAN + " Danke!", GERMAN + " " + GERMAN.replace("Bitte", "Gerne") + " So geht das, und es ist gar nicht schwer, wenn man weiß, wie man es anfangen muss, und man lernt es schnell mit ein wenig Übung." + CLEAN_ANSWER[CLEAN_ANSWER.index("\n```") :]),
}  # fmt: skip
"""For each rule a record that breaks it and no other one that comes before it."""


def test_exactly_the_planted_records_are_dropped_each_by_its_rule() -> None:
    for module in {rule.needs for rule in RULES.values() if rule.needs}:
        pytest.importorskip(module)
    assert set(PLANTED) == set(RULES)
    records, expected = [], []
    for number, (rule, (question, answer)) in enumerate(PLANTED.items()):
        records += [example(f"{CLEAN_QUESTION} ({number})", CLEAN_ANSWER), example(question, answer)]
        expected += ["", rule]
    order = [name for name in RULES if name not in PRESETS["evol_66k"]] + list(PRESETS["evol_66k"])
    drops = Filter(FilterConfig.model_validate(order)).check_all(records)
    assert [drop.rule if drop else "" for drop in drops] == expected


@pytest.mark.parametrize("piece", ["//", "://a:b", "a@", "+1 12 ", "a.b@c.d.", "1.2.", "in python ", "```\nx\n", "a<"])
def test_no_rule_takes_time_that_grows_with_the_square_of_a_line(piece: str) -> None:
    """Such a rule would take minutes here."""
    hostile = piece * (100_000 // len(piece))
    for rule in RULES.values():
        if rule.measure is not None and (not rule.needs or importlib.util.find_spec(rule.needs)):
            rule.measure(example("In Python?", hostile))
