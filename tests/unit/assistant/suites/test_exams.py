"""Comparisons of one call with plain values are taken from tests in Go, C++, Rust and Java, and nothing else."""

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_go", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.assistant.suites.exams import Pair, file_of, head_of, pairs, pairs_of_runs
from mftcoder.errors import ConfigError

CODE = {
    "go": ("a.go", "package a\n\nfunc f(x int) int {\n\treturn x + 1\n}\n"),
    "cpp": ("a.cpp", "int f(int x) {\n    return x + 1;\n}\n"),
    "java": ("A.java", "class A {\n    static int f(int x) {\n        return x + 1;\n    }\n}\n"),
    "rust": ("a.rs", "#[inline]\npub fn f(x: i32) -> i32 {\n    x + 1\n}\n"),
}


def function_of(folder: Path, language: str, text: str = "", name: str = "f") -> FunctionText:
    file, code = CODE[language]
    (folder / file).write_text(text or code)
    return find_function(WorkingFolder(folder).read(file), name)


@pytest.mark.parametrize(
    "language, code, found",
    [
        ("go", "func TestF(t *testing.T) { assert.Equal(t, 3, f(2)) }", [Pair("f(2)", "3")]),
        ("go", 'func TestF(t *testing.T) { if f([]int{1, -2}, "a(") == map[string]int{"a": 1} { return } }', [Pair('f([]int{1, -2}, "a(")', 'map[string]int{"a": 1}')]),
        ("cpp", "int main() { assert(f(-2) == -1); EXPECT_EQ(f('a', \"b\\n\"), 2.5); }", [Pair("f(-2)", "-1"), Pair("f('a', \"b\\n\")", "2.5")]),
        ("cpp", "int main() { assert(f({1, 2}) == std::vector<int>{1, 2}); }", [Pair("f({1, 2})", "std::vector<int>{1, 2}")]),
        ("java", "class T { void t() { assertEquals(3, A.f(2)); assertTrue(f(1) == -2); } }", [Pair("A.f(2)", "3"), Pair("A.f(1)", "-2")]),
        ("java", 'class T { void t() { assertEquals(List.of("a", "b"), A.f(new int[] {1, 2})); } }', [Pair("A.f(new int[] {1, 2})", 'List.of("a", "b")')]),
        ("rust", "#[test] fn t() { assert_eq!(f(2), 3); assert!(f(-1) == 0); }", [Pair("f(2)", "3"), Pair("f(-1)", "0")]),
        ("rust", '#[test] fn t() { assert_eq!(f(&[1, 2]), Some("a".to_string())); assert_eq!(vec![1], f(1)); }', [Pair("f(&[1, 2])", 'Some("a".to_string())'), Pair("f(1)", "vec![1]")]),
    ],
)  # fmt: skip
def test_comparisons_are_read(tmp_path: Path, language: str, code: str, found: list[Pair]) -> None:
    read = pairs(function_of(tmp_path, language), code)
    assert read == found
    assert pairs_of_runs("\n".join(one.run for one in read)) == found


@pytest.mark.parametrize(
    "language, code",
    [
        ("go", "func TestF(t *testing.T) { assert.Equal(t, f(2), f(2)) }"),
        ("go", "func TestF(t *testing.T) { assert.Equal(t, 3, f(os.Exit(0))) }"),
        ("go", "func TestF(t *testing.T) { assert.Equal(t, func() int { return 3 }(), f(2)) }"),
        ("go", "func TestF(t *testing.T) { want := 3; assert.Equal(t, want, f(2)) }"),
        ("cpp", "int main() { assert(f(2) == (exit(0), 3)); }"),
        ("cpp", "int main() { assert(f([]{ return 1; }()) == 3); }"),
        ("cpp", "int main() { assert(f(2) != 3); }"),
        ("cpp", "#define f(x) 3\nint main() { assert(true); }"),
        ("java", "class T { void t() { assertEquals(3, other.f(2)); } }"),
        ("java", "class T { void t() { assertEquals(3, A.f(System.exit(0))); } }"),
        ("java", "class T { void t() { assertEquals(new Object() { int x() { return 3; } }, A.f(2)); } }"),
        ("rust", "#[test] fn t() { assert_eq!(f(2), { std::process::exit(0) }); }"),
        ("rust", "#[test] fn t() { assert_eq!(f(unsafe { 1 }), 2); }"),
        ("rust", '#[test] fn t() { assert_eq!(f(2), include_str!("/etc/passwd")); }'),
        ("rust", "#[test] fn t() { assert_eq!(g(2), 3); println!(\"passed\"); }"),
    ],
)  # fmt: skip
def test_everything_else_is_no_test(tmp_path: Path, language: str, code: str) -> None:
    with pytest.raises(RefusedAnswer) as refused:
        pairs(function_of(tmp_path, language), code)
    assert refused.value.code == "no_tests"


@pytest.mark.parametrize(
    "language, text, name",
    [
        ("go", "package a\n\ntype T int\n\nfunc (t T) f(x int) int {\n\treturn x + 1\n}\n", "T.f"),
        ("java", "class A {\n    int f(int x) {\n        return x + 1;\n    }\n}\n", "A.f"),
        ("java", "class A {\n    private static int f(int x) {\n        return x + 1;\n    }\n}\n", "A.f"),
        ("java", "class A {\n    static <T> T f(T x) {\n        T y = x;\n        return y;\n    }\n}\n", "A.f"),
        ("go", "package a\n\nfunc f[T any](x T) T {\n\ty := x\n\treturn y\n}\n", "f"),
        ("cpp", "namespace n {\nint f(int x) {\n    return x + 1;\n}\n}\n", "f"),
        ("cpp", "template <class T>\nT f(T x) {\n    return x + 1;\n}\n", "f"),
        ("cpp", "struct S {\n    int f(int x) {\n        return x + 1;\n    }\n};\n", "S.f"),
        ("rust", "struct S;\nimpl S {\n    fn f(x: i32) -> i32 {\n        x + 1\n    }\n}\n", "S.f"),
        ("rust", "mod m {\n    pub fn f(x: i32) -> i32 {\n        x + 1\n    }\n}\n", "f"),
    ],
)
def test_what_the_judge_cannot_call_is_refused(tmp_path: Path, language: str, text: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"only plain (functions|static methods)"):
        head_of(function_of(tmp_path, language, text, name))


def test_the_head_is_the_text_before_the_body(tmp_path: Path) -> None:
    assert head_of(function_of(tmp_path, "rust")).text == "pub fn f(x: i32) -> i32 {\n"
    assert head_of(function_of(tmp_path, "go")).text == "func f(x int) int {\n"


@pytest.mark.parametrize("language", CODE)
def test_the_file_of_tests_holds_each_comparison(tmp_path: Path, language: str) -> None:
    made = file_of(function_of(tmp_path, language), [Pair("f(2)", "3"), Pair("f(-1)", "0")])
    assert "f(2)" in made and "f(-1)" in made


@pytest.mark.parametrize(
    "language, code",
    [
        ("java", 'class T { void t() { assertEquals("\\u0022 + System.getenv() + \\u0022", A.f(2)); } }'),
        ("cpp", 'int main() { assert(f("??/", "); exit(0); //") == 3); }'),
    ],
)
def test_a_text_that_ends_early_for_the_compiler_brings_no_code_into_the_judge(
    tmp_path: Path, language: str, code: str
) -> None:
    with pytest.raises(RefusedAnswer) as refused:
        pairs(function_of(tmp_path, language), code)
    assert refused.value.code == "hidden_code"


def test_the_file_of_tests_of_go_holds_whole_characters(tmp_path: Path) -> None:
    """Go refuses the two halves by which JSON writes them."""
    written = file_of(function_of(tmp_path, "go"), [Pair('f("\U0001f600")', "3")])
    assert '"f(\\"\U0001f600\\") gives %v"' in written
