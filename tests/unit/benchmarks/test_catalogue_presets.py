"""The contest's preset: its exact prompts, how it extracts answers, and what it prints."""

import pytest

from mftcoder.benchmarks.catalogue import GROUPS, PRESETS
from mftcoder.benchmarks.families import humaneval, humanevalpack, mbpp
from mftcoder.benchmarks.problem import Asking, Benchmark
from tests.pack_record import PACK_RECORD

PRESET = PRESETS["qwen-competition"]
PACK = {**PACK_RECORD, "instruction": "Write a Python function."}
ROW = {"task_id": 11, "text": "Twice.", "code": "def f(x):\n    return 2 * x", "test_list": ["assert f(1) == 2"]}
HEAD = '"""\nTwice.\nassert f(1) == 2\n"""\n'


def pack(kind: str, row: dict = PACK, language: str = "python") -> Benchmark:
    problem = humanevalpack.problem_of(row, language, kind)
    return Benchmark(f"humaneval{kind}-{language}", (problem,), humanevalpack._family(kind, language), "here")


def the_mbpp() -> Benchmark:
    return Benchmark("mbpp", (mbpp.problem_of(ROW),), mbpp.FAMILY, "here")


def asked(benchmark: Benchmark, system: str = "") -> str:
    return benchmark.prompt(benchmark.problems[0], PRESET.asking(benchmark.name, system))


def read(benchmark: Benchmark, text: str, asking: Asking | None = None) -> str:
    return benchmark.extract(benchmark.problems[0], text, asking or PRESET.asking(benchmark.name, ""))


def test_humanevalpack_prompts_are_plain_text_with_a_final_line_break():
    assert asked(pack("synthesize")) == 'Write a Python function.\n\ndef f(x: int) -> int:\n    """ Twice. """\n'
    assert asked(pack("fixtests")).endswith("Fix bugs in f.\n\ndef f(x: int) -> int:\n")


def test_mbpp_prompts_are_chatml_with_an_empty_system_message():
    expected = f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{HEAD}<|im_end|>\n<|im_start|>assistant"
    assert asked(the_mbpp()) == expected
    assert asked(the_mbpp(), "Be right.").startswith("<|im_start|>system\nBe right.<|im_end|>\n<|im_start|>user\n")


def test_a_completion_follows_the_line_break_that_its_prompt_ended_with():
    whole = 'def f(x: int) -> int:\n    """ Twice. """\n    return 2 * x'
    assert read(pack("synthesize"), "    return 2 * x\n\nprint(f(1))") == whole + "\n"
    assert read(pack("fixtests"), "    return 2 * x") == "def f(x: int) -> int:\n    return 2 * x"


CPP = {**PACK, "task_id": "CPP/0", "prompt": "int f(int x){\n", "declaration": "int f(int x){\n"}

JS = {**PACK, "task_id": "JavaScript/0", "prompt": "const f = (x) => {\n", "declaration": "const f = (x) => {\n"}
JAVA_CODE = "class Solution {\n    public int f(int x) {\n"
JAVA = {**PACK, "task_id": "Java/0", "prompt": JAVA_CODE, "declaration": JAVA_CODE}


def test_braces_close_the_other_languages_completions():
    assert (
        read(pack("synthesize", CPP, "cpp"), "    return 2 * x;\n}\nint main(){}")
        == "int f(int x){\n    return 2 * x;\n}"
    )


@pytest.mark.parametrize(
    ("row", "language", "lines"),
    [
        (PACK, "python", ["    if x:", "        return 2", "", "    return 3", "And so on."]),
        (PACK, "python", ['    """ A string', '  of lines. """', "    return 2", "x = 1"]),
        (CPP, "cpp", ["    if (x) {", '        return "}";  // }', "    }", "    return 1;", "}"]),
        (JS, "js", ["  const s = `{", "}`;", "  return s;", "}"]),
        (JS, "js", ["  if (x == '//') { return '}';", "  }", "  return x;", "}"]),
        (JAVA, "java", ["        return 2 * x;", "    }", "}"]),
        (CPP, "cpp", ["    /* a comment", "}", "    */", "    return 1;", "}"]),
    ],
)
def test_generation_ends_with_the_line_that_ends_the_function_and_changes_no_answer(row, language, lines):
    benchmark = pack("synthesize", row, language)
    problem, asking = benchmark.problems[0], PRESET.asking(benchmark.name, "")
    is_whole = benchmark.is_whole(problem, asking)
    assert is_whole is not None
    texts = ["".join(f"{line}\n" for line in lines[: count + 1]) for count in range(len(lines))]
    assert [is_whole(text) for text in texts] == [False] * (len(lines) - 1) + [True]
    more = texts[-1] + "int main() { return 0; }\n"
    assert benchmark.extract(problem, texts[-1], asking) == benchmark.extract(problem, more, asking)


@pytest.mark.parametrize(
    "text", ["  // it`s\n  const s = `\n}\n", '  const s = "a \\\n}\n', "  return /`/.test(x);\n}\n"]
)
def test_generation_continues_while_a_string_may_be_open(text):
    benchmark = pack("synthesize", JS, "js")
    is_whole = benchmark.is_whole(benchmark.problems[0], PRESET.asking(benchmark.name, ""))
    assert is_whole is not None
    assert not is_whole(text)


def test_only_the_eos_token_ends_an_answer_in_a_chat():
    benchmark = pack("synthesize")
    for asking in (Asking("chat"), Asking("instruct", "", "<|im_end|>\n<|im_start|>assistant\n")):
        assert benchmark.is_whole(benchmark.problems[0], asking) is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("\nHere it is:\n```python\ndef f(x):\n    return 2 * x\n```\nIt doubles.", "def f(x):\n    return 2 * x\n\n"),
        ("\n```\ndef f(x):\n    return 2 * x```\n", "def f(x):\n    return 2 * x\n"),
        ("\n```python\ndef f(x):\n    return 2 * x\n\nassert f(1) == 2\n```", "def f(x):\n    return 2 * x\n"),
        ("\n```python\nimport re\ndef f(x):\n    return 2", "import re\ndef f(x):\n    return 2\n"),
        ("\nSure.\ndef f(x):\n    return 2 * x\n\nIt doubles.", "def f(x):\n    return 2 * x\n\n"),
        (
            "\ndef g(x):\n    return x\ndef f(x):\n    return g(x)",
            "def g(x):\n    return x\ndef f(x):\n    return g(x)\n",
        ),
        ("\nI cannot.", ""),
        ("\nSee\nif it helps:\n```python\ndef f(x): ...\n```", ""),  # the contest's generation stops at "\nif"
    ],
)
def test_mbpp_takes_the_first_fenced_block_else_the_text_from_the_first_def(text, code):
    assert read(the_mbpp(), text) == HEAD + code


def test_mbpp_has_the_stop_words_of_the_contest():
    benchmark = the_mbpp()
    words = benchmark.stop(benchmark.problems[0], PRESET.asking("mbpp", ""))
    assert words == ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/")


def the_humaneval() -> Benchmark:
    row = {**PACK, "task_id": "HumanEval/0"}
    return Benchmark("humaneval", (humaneval.problem_of(row),), humaneval.FAMILY, "here")


CHATML = Asking("completion", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
FENCED = "Here is the function:\n\n```python\nimport math\n\ndef f(x):\n    return 2 * x\n```\n\nIt doubles."


@pytest.mark.parametrize("mode", ["completion", "instruct"])
@pytest.mark.parametrize("benchmark_", [the_humaneval(), pack("synthesize"), the_mbpp()], ids=lambda b: b.name)
def test_with_chatml_in_prefix_and_suffix_fenced_code_is_extracted(benchmark_, mode):
    """The stop words of completions would end such an answer at the fence, so that only prose is left."""
    asking = Asking(mode, CHATML.prefix, CHATML.suffix)
    problem = benchmark_.problems[0]
    assert all(word not in FENCED for word in benchmark_.stop(problem, asking))
    names: dict = {}
    program = benchmark_.program(problem, benchmark_.extract(problem, FENCED, asking))
    exec(program.files["candidate"], names)
    assert names["f"](4) == 8


def test_a_fence_that_the_suffix_opens_is_closed_by_the_model():
    asking = Asking("completion", "", "<|im_end|>\n<|im_start|>assistant\n```python\n")
    benchmark = the_humaneval()
    assert benchmark.stop(benchmark.problems[0], asking) == ("```",)
    assert (
        benchmark.extract(benchmark.problems[0], "def f(x):\n    return 2\n```\nDone.", asking)
        == "def f(x):\n    return 2\n"
    )


def test_without_a_suffix_stop_words_are_those_of_the_benchmark():
    benchmark = the_humaneval()
    assert benchmark.stop(benchmark.problems[0], Asking()) == benchmark.problems[0].stop
    assert benchmark.stop(benchmark.problems[0], Asking("chat")) == ()


def test_the_preset_prints_its_options():
    lines = list(PRESET.lines("", max_length=2000, end_token="<|im_end|>", dtype="bfloat16"))
    assert lines == [
        "preset qwen-competition: 13 tasks, 2,468 problems",
        "  humanevalsynthesize-*, humanevalfixtests-*: --mode instruct --suffix $'\\n'",
        "  mbpp: --mode instruct --prefix $'<|im_start|>system\\n<|im_end|>\\n<|im_start|>user\\n' "
        "--suffix $'\\n<|im_end|>\\n<|im_start|>assistant'",
        "  all: --max-length 2000 --end-token '<|im_end|>' --dtype bfloat16 --temperature 0 --n-samples 1",
    ]
    assert PRESET.tasks == GROUPS["qwen-competition"]
