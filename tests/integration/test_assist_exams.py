"""`mft assist test` on Go, C++, Rust and Java: only comparisons with plain values are taken from an answer, and each finds a mutant."""

from collections.abc import Iterator

import pytest

pytest.importorskip("tree_sitter_go", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.assistant import Assistant
from mftcoder.curation.example import fenced
from mftcoder.errors import ConfigError, NoAnswerAcceptedError
from mftcoder.execution.languages import LANGUAGES as TOOLCHAINS
from tests.scripted_model import Says

CODE = {
    "go": ("shapes.go", "package shapes\n\n// perimeter of a rectangle.\nfunc perimeter(w int, h int) int {\n\tif w < 0 {\n\t\treturn -1\n\t}\n\treturn 2*w + 2*h\n}\n"),
    "cpp": ("shapes.cpp", "// Perimeter of a rectangle.\nint perimeter(int w, int h) {\n    if (w < 0) {\n        return -1;\n    }\n    return 2 * w + 2 * h;\n}\n"),
    "java": ("Shapes.java", "package my.shapes;\n\npublic class Shapes {\n    /** Perimeter of a rectangle. */\n    static int perimeter(int w, int h) {\n        if (w < 0) {\n            return -1;\n        }\n        return 2 * w + 2 * h;\n    }\n}\n"),
    "rust": ("shapes.rs", "/// Perimeter of a rectangle.\npub fn perimeter(w: i32, h: i32) -> i32 {\n    if w < 0 {\n        return -1;\n    }\n    2 * w + 2 * h\n}\n"),
}  # fmt: skip
ANSWERS = {
    "go": 'func TestPerimeter(t *testing.T) {\n\tos.Exit(0)\n\tassert.Equal(t, 16, perimeter(3, 5))\n\tassert.Equal(t, perimeter(1, 1), 9)\n}\n',
    "cpp": "int main() {\n    exit(0);\n    assert(perimeter(3, 5) == 16);\n    assert(perimeter(1, 1) == 9);\n}\n",
    "java": "class ShapesTest {\n    @Test void works() {\n        System.exit(0);\n        assertEquals(16, Shapes.perimeter(3, 5));\n        assertEquals(9, perimeter(1, 1));\n    }\n}\n",
    "rust": "#[test]\nfn works() {\n    std::process::exit(0);\n    assert_eq!(perimeter(3, 5), 16);\n    assert_eq!(perimeter(1, 1), 9);\n}\n",
}  # fmt: skip
LANGUAGES = [
    pytest.param(name, marks=pytest.mark.skipif(bool(TOOLCHAINS[name].missing()), reason="its tools are not here"))
    for name in CODE
]
SLOW = pytest.mark.slow(reason="each run builds the code and its judge")
SLOW_BUT_ONE = [
    pytest.param(*one.values, marks=[*one.marks, *([] if one.values == ("cpp",) else [SLOW])]) for one in LANGUAGES
]


@pytest.fixture(scope="module")
def says() -> Says:
    return Says()


@pytest.fixture(scope="module")
def assistant(says: Says, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    folder = tmp_path_factory.mktemp("exams")
    for name, text in CODE.values():
        (folder / name).write_text(text)
    with Assistant(says, folder, rounds=1, mutants=3) as one:
        yield one


@pytest.mark.parametrize("language", SLOW_BUT_ONE)
def test_comparisons_that_hold_and_find_a_mutant_are_kept_whatever_stands_around_them(
    assistant: Assistant, says: Says, language: str
) -> None:
    name, _ = CODE[language]
    says.answers = [fenced(ANSWERS[language], language)]
    made = assistant.test(f"{name}:perimeter")
    assert "perimeter(3, 5)" in made.text and "16" in made.text
    assert "9" not in made.text and "exit" not in made.text.lower()
    assert made.score.split(" of ")[0] in "123"
    assert "1 of 2 tests left out: they fail on the code" in made.notes


@SLOW
@pytest.mark.parametrize("language", LANGUAGES)
def test_comparisons_that_do_not_hold_are_refused(assistant: Assistant, says: Says, language: str) -> None:
    says.answers = [fenced(ANSWERS[language].replace("16", "17"), language)]
    with pytest.raises(NoAnswerAcceptedError, match="tests_fail"):
        assistant.test(f"{CODE[language][0]}:perimeter")


@SLOW
@pytest.mark.parametrize("language", LANGUAGES)
def test_code_that_cannot_be_built_alone_is_refused_in_one_line(
    assistant: Assistant, says: Says, language: str
) -> None:
    name, text = CODE[language]
    path = assistant.folder.root / f"broken_{name}"
    path.write_text(text.replace("2 * w", "unknown_name * w").replace("2*w", "unknown_name*w"))
    with pytest.raises(ConfigError) as refused:
        assistant.test(f"{path.name}:perimeter")
    [problem] = refused.value.problems
    assert "\n" not in problem and "cannot be loaded alone in the sandbox (tests: does not compile" in problem


@SLOW
@pytest.mark.parametrize("language", LANGUAGES)
def test_comparisons_with_values_of_a_wrong_type_are_left_out(assistant: Assistant, says: Says, language: str) -> None:
    wrong = ANSWERS[language].replace("(3, 5)", '("a", 5)').replace("perimeter(1, 1)", "perimeter(1)")
    says.answers = [fenced(wrong, language)]
    with pytest.raises(NoAnswerAcceptedError, match="tests_fail: No test passes on the code: the tests do not compile"):
        assistant.test(f"{CODE[language][0]}:perimeter")
