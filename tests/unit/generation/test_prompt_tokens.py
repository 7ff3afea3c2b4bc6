"""Prompts as token ids: at most one BOS token, and a limit for the answer, or an error that names all that are too long."""

from pathlib import Path

import pytest

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.generation.prompt_tokens import sample_seed, split_by_limit, token_prompts

TEXTS = ("def f(x):\n", "x", "class Config:\n    name: str\n")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_tokenizer_dir))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt("t", f"p/{number}", 0, text) for number, text in enumerate(texts)]


def limits(tokenizer: Tokenizer, *texts: str, positions: int = 100, **sampling: int) -> list[int]:
    found = token_prompts(
        prompts(*texts), tokenizer, Sampling(**sampling), positions=positions, add_special_tokens=False
    )
    return [item.limit for item in found]


def length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))


def test_prompts_keep_their_order_and_their_tokens(tokenizer: Tokenizer) -> None:
    found = token_prompts(prompts(*TEXTS), tokenizer, Sampling(), positions=100, add_special_tokens=False)
    assert [item.prompt.text for item in found] == list(TEXTS)
    assert [tokenizer.backend.decode(item.ids) for item in found] == list(TEXTS)


def test_an_answer_may_use_only_the_free_positions_of_the_model(tokenizer: Tokenizer) -> None:
    size = length(tokenizer, TEXTS[0])
    assert limits(tokenizer, TEXTS[0], positions=size + 3, max_new_tokens=50) == [3]
    assert limits(tokenizer, TEXTS[0], positions=size + 3, max_new_tokens=2) == [2]


def test_max_length_leaves_the_rest_to_the_answer_and_never_less_than_zero(
    tokenizer: Tokenizer,
) -> None:
    size = length(tokenizer, TEXTS[0])
    assert [limits(tokenizer, TEXTS[0], max_length=size + extra)[0] for extra in (2, 0, -1)] == [2, 0, 0]


def test_prompts_that_fill_max_length_get_an_empty_completion(tokenizer: Tokenizer) -> None:
    size = length(tokenizer, TEXTS[1])
    found = token_prompts(
        prompts(*TEXTS), tokenizer, Sampling(max_length=size + 1), positions=100, add_special_tokens=False
    )
    able, completions = split_by_limit(found)
    assert [item.prompt.problem_id for item in able] == ["p/1"]
    assert [(c.prompt.problem_id, c.text, c.finish_reason, c.tokens) for c in completions] == [
        ("p/0", "", "length", 0),
        ("p/2", "", "length", 0),
    ]


def test_every_prompt_that_is_too_long_for_the_model_is_named(tokenizer: Tokenizer) -> None:
    size = length(tokenizer, TEXTS[0])
    with pytest.raises(GenerationError) as raised:
        limits(tokenizer, TEXTS[0], "x", "", positions=size)
    assert raised.value.problems == (
        f"p/0: the prompt has {size} tokens, the model only {size} positions",
        "p/2: the prompt is empty",
    )


def test_samples_have_their_own_random_numbers_in_any_process() -> None:
    seeds = {
        sample_seed(Prompt("t", problem, sample, ""), seed)
        for problem in ("a", "b", "a\0") for sample in range(3) for seed in range(2)
    }  # fmt: skip
    assert len(seeds) == 18
    assert sample_seed(Prompt("t", "a", 1, "one text"), 0) == sample_seed(Prompt("t", "a", 1, "another"), 0) < 2**128
