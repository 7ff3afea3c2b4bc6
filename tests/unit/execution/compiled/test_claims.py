"""Which values of a test are changed for a negative control, in C++, Go, Java, JavaScript and Rust."""

import pytest

from mftcoder.execution.compiled.claims import instrument


@pytest.mark.parametrize(
    ("language", "tests", "instrumented"),
    [
        ("cpp", "assert (f(1, 2) == 3);", "assert (f(1, 2) == mft_expected(0, 3));"),
        ("cpp", "assert (same(f({1}), {2, 4}));", "assert (same(f({1}), {mft_expected(0, 2), mft_expected(0, 4)}));"),
        ("cpp", "assert (abs(f(1) - .5)<1e-4);", "assert (abs(f(1) - mft_expected(0, .5))<mft_expected(0, 1e-4));"),
        ("cpp", 'assert (f("a")==-1);', 'assert (f("a")==-mft_expected(0, 1));'),
        ("cpp", "assert (f(x)[0] == 'c');", "assert (f(x)[0] == mft_expected(0, 'c'));"),
        ("cpp", "assert (f(1));", "assert (mft_holds(0, f(1)));"),
        ("cpp", "assert (f(1) != 3);", "assert (mft_holds(0, f(1) != 3));"),
        ("java", "if (s.f(1) == 2) { throw e; }", "if (mft.Claims.holds(0, s.f(1) == 2)) { throw e; }"),
        ("java", "if (s.f(1) != 2) { throw e; }", "if (s.f(1) != mft.Claims.expected(0, 2)) { throw e; }"),
        ("java", "if (!s.f(1).equals(2)) { throw e; }", "if (!s.f(1).equals(mft.Claims.expected(0, 2))) { throw e; }"),
        ("js", "console.assert(f(1) !== 3)", "console.assert(mft_holds(0, f(1) !== 3))"),
        ("go", "assert.Equal(false, F(1) == 0.5)", "assert.Equal(mft_expected(0, false), F(1) == 0.5)"),
        ("cpp", "if (!(same(x0, 7))) { throw 1; }", "if (!(same(x0, mft_expected(0, 7)))) { throw 1; }"),
        ("java", "List<Boolean> c = Arrays.asList(s.f(1) == 2, !s.f(3));",
         "List<Boolean> c = Arrays.asList(s.f(1) == mft.Claims.expected(0, 2), mft.Claims.holds(1, !s.f(3)));"),
        ("java", 'String v = "heo"; if (!same(x, v)) throw e;', 'String v = mft.Claims.expected(0, "heo"); if (!same(x, v)) throw e;'),
        ("rust", "assert_eq!(f(vec![1]), vec![2, 4]);", "assert_eq!(f(vec![1]), vec![mft_expected(0, 2), mft_expected(0, 4)]);"),
        ("rust", "assert_eq!(f(&s), s);", "assert!(mft_holds(0, (f(&s)) == (s)));"),
        ("rust", 'assert!(f("a") == format!("{}", 1));', 'assert!(f("a") == format!("{}", mft_expected(0, 1)));'),
        ("js", "console.assert(f({ a: 1 }) === 'x', 'no 1')", "console.assert(f({ a: 1 }) === mft_expected(0, 'x'), 'no 1')"),
        ("js", "console.assert(f(1) === text((-1, null)))", "console.assert(mft_holds(0, f(1) === text((-1, null))))"),
        ("js", "console.assert(f(1) === text((-1, 2)))", "console.assert(f(1) === text((-1, mft_expected(0, 2))))"),
        ("go", "assert.Equal([]float64{1, 2}, f(3))", "assert.Equal(mft_expected(0, []float64{1, 2}), f(3))"),
        ("go", "assert.Equal(f(s), string(r))", "assert.Equal(f(s), mft_expected(0, string(r)))"),
        ("go", "assert.Equal(true, math.Abs(f(1)-0.5) < 1e-6)",
         "assert.Equal(true, math.Abs(f(1)-mft_number(0, 0.5)) < mft_number(0, 1e-6))"),
    ],
)  # fmt: skip
def test_expected_values_are_instrumented_and_arguments_are_not(language: str, tests: str, instrumented: str) -> None:
    found = instrument(tests, language, ["f"])
    assert found.tests == instrumented
    assert found.claims == instrumented.count("expected(1") + instrumented.count("holds(1") + 1


@pytest.mark.parametrize(
    ("language", "tests"),
    [
        ("cpp", "assert (true);"),
        ("cpp", '// assert (f(1) == 2);\nstring s = "assert (f(1) == 2)";'),
        ("java", "if (correct.contains(false)) { throw new AssertionError(); }"),
        ("java", "if (n == 3) { n = 4; }"),
        ("go", "assert.Equal(f(1), f(2))"),
        ("rust", "for _ in 0..100 { let x = 97 + random() % 26; }"),
    ],
)
def test_code_that_is_not_a_claim_about_the_answer_is_not_changed(language: str, tests: str) -> None:
    found = instrument(tests, language, ["f"])
    assert (found.tests, found.claims) == (tests, 0)


@pytest.mark.parametrize("before", ['string str=""; string coded = encode(str);', 'string str="";'])
def test_a_variable_that_a_call_uses_too_is_not_changed(before: str) -> None:
    """`decode(encode(str)) == str` would hold for any other text as well."""
    claim = "f(coded) == str" if "coded" in before else "f(str) == str"
    assert instrument(f"{before} assert ({claim});", "cpp", ["f"]).tests == f"{before} assert (mft_holds(0, {claim}));"


def test_claims_are_numbered_in_order() -> None:
    found = instrument("assert (f(1) == 1);\nassert (f(2) == 2);\nassert (f(3));", "cpp", ["f"])
    assert [found.tests.index(f"({n}, ") for n in range(3)] == sorted(found.tests.index(f"({n}, ") for n in range(3))
    assert found.claims == 3
