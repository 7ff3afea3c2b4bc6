"""How an answer in C++, Go, Java, JavaScript or Rust becomes a program, in each form; where a completion ends."""

import pytest

from mftcoder.benchmarks.answers.brace_code import answer_in, assemble, before_entry, entry_name, trusted_declaration
from mftcoder.benchmarks.families import humanevalx
from mftcoder.benchmarks.problem import Problem

DECLARATIONS = {
    "cpp": "#include<vector>\nusing namespace std;\nint half(int x){ return x / 2; }\n\nint twice(int x){\n",
    "go": "\nfunc Twice(x int) int {\n",
    "java": "import java.util.*;\n\nclass Solution {\n    public int twice(int x) {\n",
    "js": "\nconst twice = (x) => {\n",
    "rust": "use std::cmp;\nfn half(x: i32) -> i32 { x / 2 }\n\nfn twice(x: i32) -> i32 {\n",
}
BODIES = {
    "cpp": "    if (x) { return 2 * x; }\n    return 0;\n}\n",
    "go": "    return 2 * x\n}\n",
    "java": "        return 2 * x;\n    }\n}\n",
    "js": '  return "}" ? 2 * x : 0;\n}\n',
    "rust": "    2 * x\n}\n",
}


def problem(language: str) -> Problem:
    declaration = DECLARATIONS[language]
    entry = "Twice" if language == "go" else "twice"
    return Problem("p", language, declaration, "", entry, fields={"declaration": declaration})


def squeezed(code: str) -> str:
    return "".join(code.split())


@pytest.mark.parametrize("language", DECLARATIONS)
def test_every_way_to_write_an_answer_is_the_same_program(language):
    whole = squeezed(DECLARATIONS[language] + BODIES[language])
    function = DECLARATIONS[language][
        len(before_entry(DECLARATIONS[language], problem(language).entry_point, language)) :
    ]
    if language == "java":
        function = DECLARATIONS["java"].partition("\n\n")[2]
    for answer in (BODIES[language], DECLARATIONS[language] + BODIES[language], function + BODIES[language]):
        for written in (answer, f"Sure:\n```{language}\n{answer}```\nThere."):
            assert squeezed(assemble(problem(language), written)) == whole


def test_a_java_method_without_a_class_gets_one():
    code = assemble(problem("java"), "    public int twice(int x) {\n        return 2 * x;\n    }\n")
    assert squeezed(code) == squeezed(
        "import java.util.*; class Solution { public int twice(int x) { return 2 * x; } }"
    )


def test_a_main_in_cpp_is_removed_because_the_tests_have_one():
    assert "main" not in assemble(problem("cpp"), BODIES["cpp"] + "int main() { return 0; }\n")


def test_an_entry_point_that_the_data_misspells_is_the_last_function_declared():
    assert entry_name(DECLARATIONS["cpp"], "twise", "cpp") == "twice"
    assert entry_name(DECLARATIONS["rust"], "half", "rust") == "half"


def test_a_rust_function_that_only_its_solution_defines_is_declared_after_its_helper():
    row = {
        "task_id": "Rust/10",
        "declaration": "use std::cmp;\n\nfn half(x: i32) -> i32 {\n",
        "canonical_solution": "    x / 2\n}\n\nfn quarter(x: i32) -> i32 {\n    half(half(x))\n}\n",
        "test": "#[test]\nfn test_it() { assert_eq!(quarter(8), 2); }\n",
    }
    known = humanevalx.problem_of(row, "rust", row["declaration"])
    assert known.entry_point == "quarter"
    assert squeezed(trusted_declaration(known)) == squeezed(
        "use std::cmp; fn half(x: i32) -> i32 { x / 2 } fn quarter(x: i32) -> i32 {"
    )


@pytest.mark.parametrize("language", DECLARATIONS)
def test_a_completion_ends_with_the_block_it_completes(language):
    text = BODIES[language] + "\n// and more\nint main() { }\n"
    assert squeezed(answer_in(problem(language), text, "completion")) == squeezed(
        DECLARATIONS[language] + BODIES[language]
    )


def test_an_unfinished_java_class_is_closed_as_the_reference_harness_does():
    text = "        return 2 * x;\n    }\n    public static void main(String[] args) {\n"
    assert squeezed(answer_in(problem("java"), text, "completion")) == squeezed(DECLARATIONS["java"] + BODIES["java"])


def test_a_chat_answer_is_its_fenced_code():
    assert (
        answer_in(problem("js"), "Here:\n```js\nconst twice = (x) => 2 * x;\n```", "chat")
        == "const twice = (x) => 2 * x;\n"
    )
