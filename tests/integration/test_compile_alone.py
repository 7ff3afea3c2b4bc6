"""Code without tests is compiled as a file of its own, in the sandbox, and does not run. Slow: compilers of five languages."""

import pytest

from mftcoder.curation.verification.verdict import verdict_of
from mftcoder.execution.languages import LANGUAGES
from mftcoder.execution.pool import open_pool
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program

SNIPPETS = {
    "cpp": {
        "whole": '#include <iostream>\nint main() { auto [a, b] = std::pair(1, 2); std::cout << a + b << "\\n"; }',
        "part": "vector<int> f(vector<int> v) { sort(v.begin(), v.end()); return v; }",
        "broken": "int f( { return 1; }",
        "foreign": "#include <nosuch/library.h>\nint f() { return 1; }",
    },
    "go": {
        "whole": 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println(1) }',
        "part": "func f(s string) string { return strings.ToUpper(s) }",
        "broken": "func f( { return 1 }",
        "foreign": 'package main\n\nimport "github.com/no/such"\n\nfunc main() { such.Do() }',
    },
    "java": {
        "whole": "import java.util.List;\n\npublic class Main {\n    public static void main(String[] a) { List.of(1); }\n}",
        "part": "public static List<Integer> f(int n) { return new ArrayList<>(); }",
        "broken": "public class A { int f( { } }",
        "foreign": "import org.nosuch.Thing;\n\nclass A { Thing thing; }",
    },
    "js": {
        "whole": "import fs from 'fs';\nexport const f = () => fs.readFileSync('x');",
        "part": "const f = async (x) => (await x)?.y ?? 1;",
        "broken": "function f( { return 1 }",
    },
    "rust": {
        "whole": 'fn main() { println!("{}", 1); }',
        "part": "pub fn f(v: &[i32]) -> i32 { v.iter().sum() }",
        "broken": "fn f( -> i32 { 1 }",
        "foreign": "use nosuch::Thing;\n\npub fn f(_: Thing) {}",
    },
}


@pytest.mark.slow(reason="builds the toolchain of each language, then starts its compiler")
@pytest.mark.parametrize("language", SNIPPETS)
def test_code_compiles_or_does_not_or_lacks_a_library(language: str) -> None:
    if LANGUAGES[language].missing():
        pytest.skip(f"{language}: {', '.join(LANGUAGES[language].missing())} not found")
    programs = {name: Program(language, {"candidate": code}) for name, code in SNIPPETS[language].items()}
    with open_pool(workers=1, languages=[language]) as pool:
        results = dict(pool.run(programs.items(), Limits(seconds=5)))
    verdicts = {name: verdict_of(result, language, ("compile",)) for name, result in results.items()}
    names = {name: verdict.name for name, verdict in verdicts.items() if verdict}
    expected = {
        "whole": "passed compile",
        "part": "passed compile",
        "broken": "failed compile",
        "foreign": "not run missing_module",
    }
    assert names == {name: expected[name] for name in programs}, results


def test_a_compiler_that_ends_without_words_is_a_failure_to_compile() -> None:
    found = verdict_of(ExecutionResult("compile_error", 1), "cpp", ("compile",))
    assert found is not None
    assert found.name == "failed compile"
