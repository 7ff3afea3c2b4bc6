"""The answer in a text: fences, stop words, the closing brace."""

from mftcoder.benchmarks.answers.extraction import best_block, cut_after_block, cut_at_stop_words, fenced_blocks


def test_a_single_quoted_string_of_javascript_opens_no_comment() -> None:
    code = " if (op == '//') { return '}'; } }"
    assert cut_after_block(code + " more", single_quotes=True) == code


def test_the_block_that_names_the_function_wins_over_an_earlier_one():
    text = "Example:\n```python\nx = 1\n```\nAnswer:\n```python\ndef f():\n    pass\n```\nDone."
    assert best_block(text, "f") == "def f():\n    pass\n"
    assert best_block(text, "g") == "x = 1\n"


def test_a_block_that_the_token_limit_truncated_counts():
    assert fenced_blocks("Sure:\n```go\nfunc f() {\n") == ["func f() {\n"]


def test_text_without_a_fence_has_no_block():
    assert best_block("return `x`", "x") is None


def test_the_first_of_the_stop_words_ends_the_text():
    assert cut_at_stop_words("a\nclass B\ndef c", ("\ndef", "\nclass")) == "a"
    assert cut_at_stop_words("abc", ("\ndef",)) == "abc"


def test_a_block_ends_at_its_own_brace_and_not_at_one_in_text():
    assert cut_after_block(' if (a) { return "}"; } // }\n} int main() {}') == ' if (a) { return "}"; } // }\n}'
    assert (
        cut_after_block("let c = '}'; x: &'a str, y: &'a str }\nfn main() {}")
        == "let c = '}'; x: &'a str, y: &'a str }"
    )


def test_several_open_blocks_end_at_the_last_brace():
    assert cut_after_block(" return 1; } } class B {}", 2) == " return 1; } }"


def test_a_block_without_an_end_is_none():
    assert cut_after_block("return 1;") is None
