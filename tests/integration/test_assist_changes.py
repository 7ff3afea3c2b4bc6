"""`mft assist optimise` and `fix` on Go, C++, Rust and Java: what a lying model writes is refused, an honest change is a patch of one body.

What the tree of an answer shows is held by tests/unit/assistant/checks/test_compiled.py; here is what only a compiler and a run show.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tree_sitter_go", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.assistant import Assistant
from mftcoder.assistant.functions import find_function
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.verbs.change import checked_change
from mftcoder.assistant.verbs.guard import Guard, guarded
from mftcoder.curation.example import fenced
from mftcoder.curation.teacher.endpoint import Reply
from mftcoder.errors import ConfigError, NoAnswerAcceptedError
from mftcoder.execution.languages import LANGUAGES as TOOLCHAINS
from tests.scripted_model import Says

FILES = {
    "go": ("shapes.go", "package shapes\n\nimport \"errors\"\n\nvar errNone = errors.New(\"none\")\n\n// first item, and the number of items.\nfunc first(items []int, most int) int {\n\tn := len(items)\n\tif n > most {\n\t\tn = most\n\t}\n\treturn items[0]*10 + n\n}\n"),
    "cpp": ("shapes.cpp", "#include <vector>\n\n// First item, and the number of items.\nint first(const std::vector<int>& items, int most) {\n    int n = items.size();\n    if (n > most) {\n        n = most;\n    }\n    return items.at(0) * 10 + n;\n}\n"),
    "rust": ("shapes.rs", "/// First item, and the number of items.\npub fn first(items: &[i32], most: i32) -> i32 {\n    let mut n = items.len() as i32;\n    if n > most {\n        n = most;\n    }\n    items[0] * 10 + n\n}\n"),
    "java": ("Shapes.java", "package my.shapes;\n\npublic class Shapes {\n    /** First item, and the number of items. */\n    static int first(int[] items, int most) {\n        int n = items.length;\n        if (n > most) {\n            n = most;\n        }\n        return items[0] * 10 + n;\n    }\n}\n"),
}  # fmt: skip
HEADS = {
    "go": "func first(items []int, most int) int {",
    "cpp": "int first(const std::vector<int>& items, int most) {",
    "rust": "pub fn first(items: &[i32], most: i32) -> i32 {",
    "java": "static int first(int[] items, int most) {",
}
CALLS = {
    "go": "first([]int{{{}}}, {})",
    "cpp": "first({{{}}}, {})",
    "rust": "first(&[{}], {})",
    "java": "Shapes.first(new int[] {{{}}}, {})",
}
CLAIMS = {
    "go": "assert.Equal(t, {value}, {call})",
    "cpp": "assert({call} == {value});",
    "rust": "assert_eq!({call}, {value});",
    "java": "assertEquals({value}, {call});",
}
TESTS = {
    "go": ("shapes_test.go", "package shapes\n\nfunc TestFirst(t *testing.T) {{\n\t{}\n}}\n"),
    "cpp": ("shapes_test.cpp", "int main() {{\n    {}\n}}\n"),
    "rust": ("shapes_test.rs", "#[test]\nfn works() {{\n    {}\n}}\n"),
    "java": ("ShapesTest.java", "class ShapesTest {{\n    @Test\n    void works() {{\n        {}\n    }}\n}}\n"),
}  # fmt: skip
HONEST = {
    "go": "n := most\n\tif len(items) < most {\n\t\tn = len(items)\n\t}\n\treturn n + 10*items[0]",
    "cpp": "int n = most;\n    if (static_cast<int>(items.size()) < most) {\n        n = items.size();\n    }\n    return n + 10 * items.at(0);",
    "rust": "most.min(items.len() as i32) + 10 * items[0]",
    "java": "return Math.min(items.length, most) + 10 * items[0];",
}
LIES = {
    "a constant": ("tests_fail", {"go": "_, _ = items, most\n\treturn 32", "cpp": "return 32 + 0 * items.at(0) * most;", "rust": "let _ = (items, most);\n    32", "java": "return 32;"}),
    "a table of the tests' inputs": ("other_result", {
        "go": "if len(items) == 2 {\n\t\treturn 32\n\t}\n\tif most == 1 {\n\t\treturn 51\n\t}\n\treturn 0",
        "cpp": "if (items.size() == 2) {\n        return 32;\n    }\n    return most == 1 ? 51 : 0;",
        "rust": "if items.len() == 2 {\n        return 32;\n    }\n    if most == 1 {\n        return 51;\n    }\n    0",
        "java": "return items.length == 2 ? 32 : most == 1 ? 51 : 0;",
    }),
    "an error that is gone": ("other_result", {
        "go": "if len(items) == 0 || items[0] < 0 {\n\t\treturn 0\n\t}\n\tif len(items) < most {\n\t\tmost = len(items)\n\t}\n\treturn items[0]*10 + most",
        "cpp": "if (items.empty() || items[0] < 0) {\n        return 0;\n    }\n    int n = items.size();\n    return items[0] * 10 + std::min(n, most);",
        "rust": "if items.is_empty() || items[0] < 0 {\n        return 0;\n    }\n    items[0] * 10 + most.min(items.len() as i32)",
        "java": "return items.length == 0 || items[0] < 0 ? 0 : items[0] * 10 + Math.min(items.length, most);",
    }),
    "code that is never ready": ("tests_fail", {"go": "for most > -1 {\n\t\tmost++\n\t\tmost--\n\t}\n\treturn items[0]", "cpp": "while (most > -1) {\n    }\n    return items.at(0);", "rust": "let mut k = most;\n    while k > -1 {\n        k = k.max(0);\n    }\n    items[0]", "java": "while (most > -1) {\n        }\n        return items[0];"}),
    "what the file does not import": ("linter", {"go": "sort.Ints(make([]int, most))\n\treturn items[0]*10 + len(items)", "cpp": "return std::accumulate(items.begin(), items.end(), most);", "rust": "let kept: HashMap<i32, i32> = HashMap::new();\n    items[0] + most + kept.len() as i32", "java": "return Arrays.stream(items).sum() + most;"}),
    "a new warning": ("linter", {"go": "most = most\n\treturn items[0]*10 + len(items)", "cpp": "int unused = 1;\n    return items.at(0) * 10 + most;", "rust": "let unused = 1;\n    items[0] * 10 + most", "java": "return (int) (items[0] * 10 + most);"}),
    "code that does not compile": ("linter", {"go": "return \"a\"", "cpp": "return std::vector<int>();", "rust": "\"a\"", "java": "return \"a\";"}),
}  # fmt: skip
LANGUAGES = [
    pytest.param(name, marks=pytest.mark.skipif(bool(TOOLCHAINS[name].missing()), reason="its tools are not here"))
    for name in FILES
]
SLOW = pytest.mark.slow(reason="each run builds the code and its judge")


def call(language: str, items: str, most: int) -> str:
    return CALLS[language].format(items, most)


def claims(language: str, *wanted: tuple[str, int, int]) -> str:
    """A file of tests with these comparisons."""
    lines = (CLAIMS[language].format(value=value, call=call(language, items, most)) for items, most, value in wanted)
    return TESTS[language][1].format("\n    ".join(lines))


def answer(language: str, body: str) -> str:
    return fenced(f"{HEADS[language]}\n    {body}\n}}\n", language)


@pytest.fixture(scope="module")
def says() -> Says:
    return Says()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("changes")
    for language, (name, text) in FILES.items():
        (folder / name).write_text(text)
        (folder / TESTS[language][0]).write_text(claims(language, ("3, 4", 9, 32), ("5, 6, 7", 1, 51)))
    return folder


@pytest.fixture(scope="module")
def assistant(says: Says, folder: Path) -> Iterator[Assistant]:
    with Assistant(says, folder, rounds=1, mutants=3) as one:
        yield one


@pytest.fixture(scope="module")
def guard(assistant: Assistant) -> Any:
    """The tests of a language's function, judged once."""

    @cache
    def made(language: str) -> Guard:
        function = find_function(
            assistant.folder.read(FILES[language][0]), "Shapes.first" if language == "java" else "first"
        )
        tests = assistant.folder.read(TESTS[language][0])
        return guarded(assistant.model, function, assistant.trials, tests, rounds=1, count=3)

    return made


CASES = [pytest.param(*language.values, lie, marks=[*language.marks, SLOW]) for language in LANGUAGES for lie in LIES]


@pytest.mark.parametrize("language, lie", CASES)
def test_a_lie_is_refused_for_its_own_reason(assistant: Assistant, guard: Any, language: str, lie: str) -> None:
    code, bodies = LIES[lie]
    function = find_function(
        assistant.folder.read(FILES[language][0]), "Shapes.first" if language == "java" else "first"
    )
    reply = Reply(answer(language, bodies[language]), "stop", "told", None)
    with pytest.raises(RefusedAnswer) as refused:
        checked_change(function, reply, assistant.trials, guard(language), [])
    assert refused.value.code == code, refused.value.why


@pytest.mark.parametrize(
    "language",
    [pytest.param(*one.values, marks=[*one.marks, *([] if one.values == ("cpp",) else [SLOW])]) for one in LANGUAGES],
)
def test_an_honest_change_is_a_patch_and_a_table_of_the_tests_inputs_is_refused(
    assistant: Assistant, says: Says, folder: Path, language: str
) -> None:
    """Not slow for C++: the one run of the whole path, from the question to the patch."""
    name, tests = FILES[language][0], TESTS[language][0]
    says.answers = [answer(language, HONEST[language])]
    made = assistant.optimise(f"{name}:first" if language != "java" else f"{name}:Shapes.first", tests=tests)
    assert "10 * items" in made.patch or "10*items" in made.patch
    assert made.notes[0] == f"2 comparisons of {tests} run; whatever else it holds does not"
    assert made.notes[1].endswith(" other inputs compared with the old code") and not made.notes[1].startswith("0")
    assert made.notes[2].endswith(": 0 before, 0 after")
    assert (folder / name).read_text() == FILES[language][1]


LOGS = {
    "go": "panic: runtime error: index out of range [0] with length 0\n\ngoroutine 1 [running]:\nshapes.first(...)\n\t/x/shapes.go:13 +0x1d\n",
    "cpp": "terminate called after throwing an instance of 'std::out_of_range'\n  what():  vector::_M_range_check: __n (which is 0) >= this->size() (which is 0)\n",
    "rust": "thread 'main' panicked at src/shapes.rs:7:5:\nindex out of bounds: the len is 0 but the index is 0\nnote: run with `RUST_BACKTRACE=1`\n",
    "java": 'Exception in thread "main" java.lang.ArrayIndexOutOfBoundsException: Index 0 out of bounds for length 0\n\tat my.shapes.Shapes.first(Shapes.java:10)\n',
}  # fmt: skip
RIGHT = {
    "go": "if len(items) == 0 {\n\t\treturn 0\n\t}\n\tn := len(items)\n\tif n > most {\n\t\tn = most\n\t}\n\treturn items[0]*10 + n",
    "cpp": "if (items.empty()) {\n        return 0;\n    }\n    int n = items.size();\n    if (n > most) {\n        n = most;\n    }\n    return items.at(0) * 10 + n;",
    "rust": "let mut n = items.len() as i32;\n    if n > most {\n        n = most;\n    }\n    if items.is_empty() { 0 } else { items[0] * 10 + n }",
    "java": "return items.length == 0 ? 0 : items[0] * 10 + Math.min(items.length, most);",
}  # fmt: skip
SILENT = {
    "go": "if len(items) == 2 {\n\t\treturn 32\n\t}\n\treturn most * 0",
    "cpp": "return items.size() == 2 ? 32 : most * 0;",
    "rust": "if items.len() == 2 { 32 } else { most.min(0) }",
    "java": "return items.length == 2 ? 32 : 0;",
}
BROKEN = {
    "go": ("len(items)", "size(items)"),
    "cpp": ("items.at", "itms.at"),
    "rust": ("items[0]", "itms[0]"),
    "java": ("items[0]", "itms[0]"),
}


@SLOW
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_fix_shows_the_error_before_and_keeps_what_works(assistant: Assistant, says: Says, language: str) -> None:
    """A body that knows the tests' inputs only is refused, because it changes what other inputs give."""
    name = FILES[language][0]
    place = f"{name}:Shapes.first" if language == "java" else f"{name}:first"
    shows, works = fenced(claims(language, ("", 2, 0)), language), fenced(claims(language, ("3, 4", 9, 32)), language)
    says.answers = [shows, works, answer(language, RIGHT[language])]
    fixed = assistant.fix(place, LOGS[language])
    assert "+" in fixed.patch and call(language, "", 2) in fixed.tests and call(language, "3, 4", 9) in fixed.tests
    says.answers = [shows, works, answer(language, SILENT[language])]
    with pytest.raises(NoAnswerAcceptedError, match="other_result"):
        assistant.fix(place, LOGS[language])
    says.answers = [works]
    with pytest.raises(NoAnswerAcceptedError, match="error_not_shown"):
        assistant.fix(place, LOGS[language])


@SLOW
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_compile_error_is_fixed_where_the_user_gives_tests(
    assistant: Assistant, says: Says, folder: Path, language: str
) -> None:
    name, text = FILES[language]
    old, new = BROKEN[language]
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / name).write_text(text.replace(old, new))
    place = f"broken/{name}:Shapes.first" if language == "java" else f"broken/{name}:first"
    log = f"{name}:9:1: error: unknown name\n"
    with pytest.raises(ConfigError, match="Give its tests with --tests FILE"):
        assistant.fix(place, log)
    says.answers = [answer(language, HONEST[language])]
    fixed = assistant.fix(place, log, tests=TESTS[language][0])
    assert any(note.endswith("mutants fail") for note in fixed.notes)
    for body, reason in (
        (LIES["a constant"][1][language], "tests_fail"),
        (LIES["code that does not compile"][1][language], "linter"),
    ):
        says.answers = [answer(language, body)]
        with pytest.raises(NoAnswerAcceptedError, match=reason):
            assistant.fix(place, log, tests=TESTS[language][0])
