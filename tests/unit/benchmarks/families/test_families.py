"""Prompts of every family compared with their definition, built by hand from one record."""

import pytest

from mftcoder.benchmarks.catalogue import GROUPS, all_tasks, expand, load
from mftcoder.benchmarks.families import codefuseeval, exam, humanevalpack, humanevalx, mbpp
from mftcoder.benchmarks.problem import Asking, Benchmark
from mftcoder.errors import BenchmarkError
from mftcoder.execution.languages import LANGUAGES
from mftcoder.registry import BENCHMARKS
from tests.pack_record import PACK_RECORD as ROW

RUST = {
    **ROW,
    "task_id": "Rust/0",
    "declaration": "\nfn f(x: i32) -> i32 {\n",
    "prompt": "fn main(){}\n\nfn f(x: i32) -> i32 {\n",
}


def prompted(kind: str, row: dict = ROW, language: str = "python", mode: str = "instruct", **around: str) -> str:
    problem = humanevalpack.problem_of(row, language, kind)
    benchmark = Benchmark("b", (problem,), humanevalpack._family(kind, language), "here")
    return benchmark.prompt(problem, Asking(mode, **around))


def test_synthesize_is_instruction_and_prompt():
    assert prompted("synthesize") == ROW["instruction"] + "\n\n" + ROW["prompt"].strip()


def test_synthesize_as_a_completion_is_the_prompt_alone():
    assert prompted("synthesize", mode="completion") == ROW["prompt"].strip()


def test_fixtests_shows_the_bug_and_the_tests():
    expected = (
        ROW["declaration"]
        + ROW["buggy_solution"]
        + "\n"
        + ROW["test"]
        + "\n"
        + "Fix bugs in f."
        + "\n\n"
        + ROW["declaration"]
    )
    assert prompted("fixtests") == expected.strip()


def test_fixdocs_shows_the_docstring_in_place_of_the_tests():
    assert (
        prompted("fixdocs") == (ROW["prompt"] + ROW["buggy_solution"] + "\nFix bugs in f.\n\n" + ROW["prompt"]).strip()
    )


def test_rust_repairs_begin_with_a_main():
    base = "fn main(){}\n" + RUST["declaration"]
    expected = base + RUST["buggy_solution"] + "\n" + RUST["test"] + "\nFix bugs in f.\n\n" + base
    assert prompted("fixtests", RUST, "rust") == expected.strip()


def test_describing_is_bounded_by_the_docstring():
    wish = "Provide a concise natural language description of the code using at most 6 characters."
    assert prompted("explaindescribe") == (ROW["declaration"] + ROW["canonical_solution"] + "\n" + wish).strip()


def test_writing_from_a_description_needs_one():
    with pytest.raises(BenchmarkError, match="descriptions"):
        prompted("explainsynthesize")
    described = {**ROW, "description": "Doubles."}
    expected = "Doubles.\nWrite functional code in Python according to the description.\n\n" + ROW["declaration"]
    assert prompted("explainsynthesize", described) == expected.strip()


def test_prefix_and_suffix_are_put_around_the_prompt():
    text = prompted("synthesize", prefix="<|im_start|>user\n", suffix="<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>user\nWrite") and text.endswith("assistant\n")


def test_mbpp_is_a_docstring_of_text_and_first_test():
    row = {
        "task_id": 11,
        "text": "Twice.",
        "code": "def f(x):\n    return 2 * x",
        "test_list": ["assert f(1) == 2", "assert f(0) == 0"],
        "test_setup_code": "",
    }
    problem = mbpp.problem_of(row)
    assert mbpp.FAMILY.prompt(problem, "completion") == '"""\nTwice.\nassert f(1) == 2\n"""\n'
    assert problem.entry_point == "f"


def test_translation_ends_with_the_declaration_wanted():
    row = {**ROW, "source": "code translation\nJava:\n...\nPython:\n"}
    problem = humanevalx.problem_of(row, "python", ROW["declaration"])
    assert (
        humanevalx.family("python", "x").prompt(problem, "completion")
        == "code translation\nJava:\n...\nPython:\ndef f(x: int) -> int:"
    )


def test_a_translation_is_called_as_its_tests_call_it():
    row = {
        "task_id": "Python/1",
        "prompt": "int f() {}",
        "canonical_solution": "def g(x):\n    return 1\ndef f(x):\n    return g(x)\n",
        "test": "assert f(1) == 1\n",
        "func_title": "def f(x):",
    }
    assert codefuseeval._translation_problem(row, "python").entry_point == "f"


CHINESE = {**ROW, "prompt_text_chinese": "返回两倍。\n第二行。"}
DECLARATIONS = {
    "python": "import math\n\ndef f(x: int) -> int:\n",
    "java": "import java.util.*;\n\nclass Solution {\n    public int f(int x) {\n",
    "cpp": "#include<math.h>\nint g(int x){\n    return x;\n}\nint f(int x){\n",
    "js": "\nconst f = (x) => {\n",
    "go": "\nfunc f(x int) int {\n",
    "rust": "\nuse md5;\n\nfn f(x:i32) -> i32{\n\n",
}
GO_PROMPT = 'import (\n    "math"\n)\n\nfunc g(x int) int {\n    return x\n}\n// Twice.\n//\n\nfunc f(x int) int {\n'


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("python", 'import math\n\ndef f(x: int) -> int:\n    """\n    返回两倍。\n    第二行。\n    """\n'),
        (
            "java",
            "import java.util.*;\n\nclass Solution {\n    // 返回两倍。\n    // 第二行。\n    public int f(int x) {\n",
        ),
        ("cpp", "#include<math.h>\nint g(int x){\n    return x;\n}\n// 返回两倍。\n// 第二行。\nint f(int x){\n"),
        ("js", "// 返回两倍。\n// 第二行。\nconst f = (x) => {\n"),
        (
            "go",
            'import (\n    "math"\n)\n\nfunc g(x int) int {\n    return x\n}\n\n// 返回两倍。\n// 第二行。\nfunc f(x int) int {\n',
        ),
        ("rust", "\nuse md5;\n\n// 返回两倍。\n// 第二行。\nfn f(x:i32) -> i32{\n\n"),
    ],
)
def test_a_chinese_instruction_comes_before_the_declaration(language, expected):
    row = {**CHINESE, "declaration": DECLARATIONS[language], "prompt": GO_PROMPT}
    assert codefuseeval._instruction_prompt(row, language).lstrip("\n") == expected.lstrip("\n")


def test_the_chinese_prompt_for_text_to_code_is_that_of_codefuseeval():
    row = {
        "task_id": "Python/11", "canonical_solution": "def f(x):\r\n    return 2 * x", "test": ["assert f(1) == 2", "assert f(0) == 0"],
        "test_setup": "",
    }  # fmt: skip
    problem = codefuseeval._text_problem(row, "返回两倍。")
    assert problem.prompt == '"""\n返回两倍。\nassert f(1) == 2\n"""\n'
    instruct = codefuseeval._text_prompt("cn", problem, "instruct")
    assert instruct == "返回两倍。你的代码必须能够通过这些测试用例:\nassert f(1) == 2\nassert f(0) == 0"
    assert codefuseeval._text_prompt("cn", problem, "completion") == problem.prompt
    assert "Your code should satisfy these tests:\nassert f(1)" in codefuseeval._text_prompt("en", problem, "instruct")


def test_every_task_has_a_name_a_language_and_a_size():
    tasks = all_tasks()
    assert all(name and task.language in LANGUAGES and task.licence for name, task in tasks.items())
    own = {name for name, task in tasks.items() if not task.problems}  # as many as the user's data has
    assert own >= {f"exam-{kind}" for kind in exam.KINDS} and not own & set(GROUPS["qwen-competition"])


def test_the_published_families_have_all_their_tasks():
    sizes = {family: len(BENCHMARKS.load(family)) for family in BENCHMARKS.names()}
    assert sizes.items() >= {
        ("humaneval", 1), ("mbpp", 1), ("mini", 1), ("evalplus", 2), ("humanevalpack", 5 * 6), ("humanevalx", 6 + 30),
        ("codefuseeval", 7 + 6 + 2 + 6), ("exam", 4),
    }  # fmt: skip


def test_a_group_is_its_tasks_and_each_comes_once():
    assert expand(["mbpp", "qwen-competition", "mini"]) == [
        "mbpp",
        *(task for task in GROUPS["qwen-competition"] if task != "mbpp"),
        "mini",
    ]


def test_an_unknown_task_is_an_error_with_a_suggestion():
    with pytest.raises(BenchmarkError, match="Did you mean 'humanevalsynthesize-rust'"):
        load("humanevalsynthesise-rust")
