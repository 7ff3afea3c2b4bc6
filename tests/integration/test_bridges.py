"""What crosses between the tests' process and the answer's, in every language: values of all kinds, changes of arguments, exceptions.

Real compilers and runtimes, about a second a program, which is why the file is slow.
"""

import pytest

from mftcoder.execution.languages import LANGUAGES, prepare
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program

pytestmark = pytest.mark.slow(reason="compilers of six languages, about a second a program")

LIMITS = Limits(seconds=10.0)


@pytest.fixture(scope="module")
def pool():
    available = [name for name, row in LANGUAGES.items() if row.module and not row.missing()]
    with Pool("process", 1, {name: prepare(name) for name in available}) as pool:
        yield pool


def run(pool: Pool, language: str, **files: str) -> ExecutionResult:
    """The end of one program."""
    if language not in pool.toolchains:
        pytest.skip(f"{language}: {', '.join(LANGUAGES[language].missing())} not found")
    [(_, result)] = pool.run([("a", Program(language, {"helpers": "", "setup": "", "types": "", **files}))], LIMITS)
    return result


def cpp(pool: Pool, head: str, answer: str, tests: str) -> ExecutionResult:
    declaration = f"#include<bits/stdc++.h>\nusing namespace std;\n{head}{{"
    return run(
        pool, "cpp", candidate=answer, declaration=declaration, entry_point="f", tests=f"int main() {{ {tests} }}"
    )


CPP_VALUES = {
    "int": "-7", "long long": "1LL << 62", "unsigned": "4000000000u", "char": "'\\xff'", "bool": "true", "float": "1.5f", "double": "0.1",
    "string": 'string("a\\0b", 3)', "vector<vector<int>>": "{{1}, {}, {2, 3}}", "vector<bool>": "{true, false}", "list<string>": '{"a", ""}',
    "map<char,int>": "{{'a', 1}}", "unordered_map<string,vector<int>>": '{{"a", {1}}}', "set<int>": "{3, 1}", "deque<int>": "{1, 2}",
    "pair<int,string>": '{1, "a"}', "tuple<int,double,string>": 'make_tuple(1, 0.5, string("a"))', "array<int,2>": "{{1, 2}}",
}  # fmt: skip


def test_values_of_cpp_cross_both_ways(pool: Pool) -> None:
    """All in one tuple, which spares seventeen compilations."""
    kind = f"tuple<{', '.join(CPP_VALUES)}>"
    values = "".join(f"{name} x{n} = {value};\n" for n, (name, value) in enumerate(CPP_VALUES.items()))
    given = f"make_tuple({', '.join(f'x{n}' for n in range(len(CPP_VALUES)))})"
    result = cpp(
        pool, f"{kind} f({kind} x)", f"{kind} f({kind} x) {{ return x; }}", f"{values} assert (f({given}) == {given});"
    )
    assert result.status == "passed", result


@pytest.mark.parametrize(
    ("head", "answer", "tests"),
    [
        ("int f(vector<int>& x)", "int f(vector<int>& x) { x.push_back(4); return 1; }",
         "vector<int> v = {1}; assert (f(v) == 1); assert (v.size() == 2);"),
        ("int f(const string& x)", 'int f(const string& x) { if (x == "no") throw runtime_error("no such"); return x.size(); }',
         'try { f("no"); assert (1 == 2); } catch (const runtime_error& e) { assert (string(e.what()) == "no such"); } assert (f("ab") == 2);'),
        ("int f(int x)", "static int calls; int f(int x) { return ++calls; }", "assert (f(0) == 1); assert (f(0) == 2);"),
        ("double f(double x)", "double f(double x) { return x / 0.0; }", "assert (f(1) > 1e308); assert (f(0) != f(0));"),
    ],
)  # fmt: skip
def test_cpp_behaves_as_if_answer_and_tests_were_one_program(pool: Pool, head: str, answer: str, tests: str) -> None:
    result = cpp(pool, head, answer, tests)
    assert result.status == "passed", result


def rust(pool: Pool, head: str, answer: str, tests: str, types: str = "") -> ExecutionResult:
    declaration = f"use std::collections::*;\nuse std::any::Any;\n{head} {{"
    module = f"mod tests {{\n use super::*;\n #[test]\n fn test_f() {{ {tests} }}\n}}"
    return run(
        pool, "rust", candidate=f"use std::collections::*;\nuse std::any::Any;\n{answer}", declaration=declaration,
        entry_point="f", tests=module, types=types,
    )  # fmt: skip


RUST_VALUES = {
    "i32": "-7", "u64": "u64::MAX", "f32": "1.5", "char": "'é'", "String": 'String::from("é")', "&str": '"a"',
    "Vec<Vec<u8>>": "vec![vec![1], vec![]]", "Option<(i32, String)>": 'Some((1, "a".to_string()))', "[i64; 2]": "[1, 2]",
    "HashMap<String, Vec<i32>>": 'HashMap::from([("a".to_string(), vec![1])])', "BTreeSet<char>": "BTreeSet::from(['a'])",
    "Result<i32, String>": 'Err("no".to_string())', "Vec<Option<&str>>": 'vec![None, Some("a")]', "&Vec<f64>": "&vec![0.5]",
}  # fmt: skip


def test_values_of_rust_cross_both_ways(pool: Pool) -> None:
    """All as parameters of one function that returns them in nested tuples."""
    parameters = ", ".join(f"x{n}: {kind}" for n, kind in enumerate(RUST_VALUES)).replace("&", "&'a ")
    kinds, names = list(RUST_VALUES), [f"x{n}" for n in range(len(RUST_VALUES))]
    groups = range(0, len(kinds), 5)
    result = ", ".join(f"({', '.join(kinds[n : n + 5])},)" for n in groups).replace("&", "&'a ")
    returned = ", ".join(f"({', '.join(names[n : n + 5])},)" for n in groups)
    expected = ", ".join(f"({', '.join(list(RUST_VALUES.values())[n : n + 5])},)" for n in groups)
    head = f"fn f<'a>({parameters}) -> ({result})"
    end = rust(
        pool, head, f"{head} {{ ({returned}) }}", f"assert_eq!(f({', '.join(RUST_VALUES.values())}), ({expected}));"
    )
    assert end.status == "passed", end


@pytest.mark.parametrize(
    ("head", "answer", "tests"),
    [
        ("fn f(x: &mut Vec<i32>) -> i32", "fn f(x: &mut Vec<i32>) -> i32 { x.push(4); 1 }",
         "let mut v = vec![1]; assert_eq!(f(&mut v), 1); assert_eq!(v, vec![1, 4]);"),
        ("fn f(x: i32)", "fn f(x: i32) { if x < 0 { panic!(\"negative\") } }",
         "f(1); assert!(std::panic::catch_unwind(|| f(-1)).is_err());"),
        ("fn f<'a>(x: Vec<&'a str>) -> &'a str", "fn f<'a>(x: Vec<&'a str>) -> &'a str { x[0] }", 'assert_eq!(f(vec!["a", "b"]), "a");'),
        ("fn f(x: &dyn Any) -> i32", "fn f(x: &dyn Any) -> i32 { *x.downcast_ref::<i32>().unwrap_or(&-1) }",
         "assert_eq!(f(&3), 3); assert_eq!(f(&\"3\"), -1);"),
    ],
)  # fmt: skip
def test_rust_behaves_as_if_answer_and_tests_were_one_program(pool: Pool, head: str, answer: str, tests: str) -> None:
    result = rust(pool, head, answer, tests)
    assert result.status == "passed", result


def test_an_enum_of_rusts_crosses_as_the_variants_that_the_tests_name(pool: Pool) -> None:
    types = "#[derive(Debug, PartialEq)]\npub enum Kind<T> { Empty(), One(T), Two(T, i32), Never }"
    answer = 'enum Kind<T> { One(T), Two(T, i32) }\nfn f(x: i32) -> Kind<String> { if x == 1 { Kind::One("a".to_string()) } else { Kind::Two("b".to_string(), x) } }'
    tests = 'assert_eq!(f(1), Kind::One("a".to_string())); assert_eq!(f(2), Kind::Two("b".to_string(), 2));'
    result = rust(pool, "fn f(x: i32) -> Kind<String>", answer, tests, types)
    assert result.status == "passed", result


def go(pool: Pool, head: str, answer: str, tests: str) -> ExecutionResult:
    setup = 'package main\n\nimport (\n\t"testing"\n\t"github.com/stretchr/testify/assert"\n)\n'
    function = f"func TestF(t *testing.T) {{\n\tassert := assert.New(t)\n\t{tests}\n}}\n"
    return run(pool, "go", candidate=answer, declaration=f"{head} {{\n", entry_point="F", tests=function, setup=setup)


GO_VALUES = (
    ("int", "-7"), ("uint8", "255"), ("float64", "0.1"), ("string", '"é"'), ("bool", "true"), ("[]int", "[]int{}"),
    ("[]int", "[]int(nil)"), ("[][2]string", '[][2]string{{"a", "b"}}'), ("map[rune]int", "map[rune]int{'a': 1}"),
    ("map[string][]int", "map[string][]int(nil)"), ("*int", "new(int)"), ("complex128", "complex(1, 2)"),
    ("interface{}", "nil"), ("interface{}", "3"), ("interface{}", '[]interface{}{1, "a", nil, 0.5, []int{1}}'),
    ("map[interface{}]interface{}", 'map[interface{}]interface{}{1: "a", "b": 2.5}'), ("error", 'errors.New("no")'),
)  # fmt: skip


def test_values_of_go_cross_both_ways(pool: Pool) -> None:
    """All as parameters of one function that returns them."""
    names = ", ".join(f"x{n}" for n in range(len(GO_VALUES)))
    parameters = ", ".join(f"x{n} {kind}" for n, (kind, _) in enumerate(GO_VALUES))
    head = f"func F({parameters}) ({', '.join(kind for kind, _ in GO_VALUES)})"
    got = f"{names} := F({', '.join(value for _, value in GO_VALUES)})\n"
    claims = "".join(
        f"\tassert.Equal({kind}({value}), x{n})\n" for n, (kind, value) in enumerate(GO_VALUES) if kind != "*int"
    )
    result = go(pool, head, f"{head} {{ return {names} }}", f"{got}{claims}\tassert.Equal(0, *x10)")
    assert result.status == "passed", result


@pytest.mark.parametrize(
    ("head", "answer", "tests"),
    [
        ("func F(x []int)", "func F(x []int) { x[0] = 9 }", "v := []int{1, 2}\n\tF(v)\n\tassert.Equal([]int{9, 2}, v)"),
        ("func F(x map[string]int) int", 'func F(x map[string]int) int { x["b"] = 2; delete(x, "a"); return len(x) }',
         'm := map[string]int{"a": 1}\n\tassert.Equal(1, F(m))\n\tassert.Equal(map[string]int{"b": 2}, m)'),
        ("func F(x int) (int, error)", "func F(x int) (int, error) { return x, nil }", "n, e := F(3)\n\tassert.Equal(3, n)\n\tassert.Equal(nil, e)"),
    ],
)  # fmt: skip
def test_go_behaves_as_if_answer_and_tests_were_one_program(pool: Pool, head: str, answer: str, tests: str) -> None:
    result = go(pool, head, answer, tests)
    assert result.status == "passed", result


def test_a_type_that_an_answer_in_go_names_itself_equals_nothing(pool: Pool) -> None:
    head = "func F(x int) interface{}"
    assert go(pool, head, f"type Own int\n{head} {{ return Own(x) }}", "assert.Equal(3, F(3))").status == "failed"
    assert go(pool, head, f"{head} {{ return x }}", "assert.Equal(3, F(3))").status == "passed"


def java(pool: Pool, head: str, answer: str, tests: str) -> ExecutionResult:
    main = f"public class Main {{ public static void main(String[] args) throws Exception {{ Solution s = new Solution(); {tests} }} }}"
    declaration = f"import java.util.*;\nclass Solution {{\n    {head} {{\n"
    return run(
        pool,
        "java",
        candidate=f"import java.util.*;\nclass Solution {{ {answer} }}",
        declaration=declaration,
        entry_point="f",
        tests=main,
    )


JAVA_VALUES = (
    "3", "3L", "0.5", "1.5f", "'c'", "true", '"é"', "List.of(1, 2)", "new ArrayList<>(Arrays.asList(1, null))", 'Map.of("a", List.of(1))',
    "new LinkedHashMap<>(Map.of(1, 2))", "new TreeMap<>(Map.of(1, 2))", "Set.of(1)", "Optional.empty()", 'Optional.of("a")',
    'new java.math.BigInteger("123456789012345678901234567890")', 'new java.math.BigDecimal("0.10")',
    "new AbstractMap.SimpleEntry<>(1, 2)", "new LinkedList<>(List.of(1))", "Arrays.asList(1, 2)",
)  # fmt: skip


def test_values_of_java_cross_both_ways(pool: Pool) -> None:
    claims = "".join(
        f"if (!Objects.equals(s.f({value}), {value})) {{ throw new AssertionError(); }}\n" for value in JAVA_VALUES
    )
    result = java(pool, "public Object f(Object x)", "public Object f(Object x) { return x; }", claims)
    assert result.status == "passed", result


@pytest.mark.parametrize(
    ("head", "answer", "tests"),
    [
        ("public int[] f(int[] x)", "public int[] f(int[] x) { x[0] = 9; return x; }",
         "int[] v = {1, 2}; if (s.f(v).length != 2 || v[0] != 9) { throw new AssertionError(); }"),
        ("public void f(List<Integer> x)", "public void f(List<Integer> x) { x.add(4); }",
         "List<Integer> v = new ArrayList<>(); s.f(v); if (!v.equals(List.of(4))) { throw new AssertionError(); }"),
        ("public void f(List<Integer> x)", "public void f(List<Integer> x) { x.add(4); }",
         "try { s.f(Arrays.asList(1)); } catch (RuntimeException e) { return; } if (s != null) { throw new AssertionError(); }"),
        ("public static long f(long x)", "public static long f(long x) { return x << 40; }",
         "if (Solution.f(1) != 1099511627776L) { throw new AssertionError(); }"),
        ("public Object f(String x)", "public Object f(String x) { return x; }", 'if (s.f("a") != "a") { throw new AssertionError(); }'),
        ("public Object f(String x)", "public Object f(String x) { return new String(x); }", 'if (s.f("a") == "a") { throw new AssertionError(); }'),
        ("public int f(int x)", "int calls; public int f(int x) { return ++calls; }",
         "if (s.f(0) != 1 || s.f(0) != 2 || new Solution().f(0) != 1) { throw new AssertionError(); }"),
    ],
)  # fmt: skip
def test_java_behaves_as_if_answer_and_tests_were_one_program(pool: Pool, head: str, answer: str, tests: str) -> None:
    result = java(pool, head, answer, tests)
    assert result.status == "passed", result


def test_a_server_of_tests_that_is_lost_is_replaced(pool: Pool) -> None:
    """An answer whose tests never end costs itself; the next one finds a new virtual machine."""
    head, answer = "public int f(int x)", "public int f(int x) { return x; }"
    endless = java(pool, head, answer, "while (s.f(1) == 1) { if (s.f(2) != 2) { throw new AssertionError(); } }")
    assert endless.status == "timeout"
    assert java(pool, head, answer, "if (s.f(1) != 1) { throw new AssertionError(); }").status == "passed"


@pytest.mark.parametrize("language", ["cpp", "go", "java", "rust"])
def test_tests_that_do_not_compile_are_never_the_answers_failure(pool: Pool, language: str) -> None:
    calls = {
        "cpp": lambda: cpp(pool, "int f(int x)", "int f(int x) { return x; }", "no C++;"),
        "go": lambda: go(pool, "func F(x int) int", "func F(x int) int { return x }", "no Go"),
        "java": lambda: java(pool, "public int f(int x)", "public int f(int x) { return x; }", "no Java;"),
        "rust": lambda: rust(pool, "fn f(x: i32) -> i32", "fn f(x: i32) -> i32 { x }", "no Rust;"),
    }
    assert calls[language]().status == "sandbox_error"


def test_claims_that_do_not_compile_when_lifted_are_run_as_they_came(pool: Pool) -> None:
    """A constant that must be one cannot be lifted; the tests then have no control, and the same verdict."""
    tests = 'assert (array<int, 2>{{f(1), 2}}.size() == 2); static_assert(1 == 1, ""); constexpr int n = 3; assert (f(n) == 3);'
    assert cpp(pool, "int f(int x)", "int f(int x) { return x; }", tests).status == "passed"
