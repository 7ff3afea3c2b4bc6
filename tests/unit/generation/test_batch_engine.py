from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation.batch_engine import BatchEngine
from mftcoder.generation.engine import Completion, Prompt, Sampling
from mftcoder.models.loading.load import load_folder

TEXTS = (
    "def add(a, b):",
    "x",
    "import torch\n\n\nclass Model:\n    def forward(self",
    "for i in range(10):\n",
    "é中",
    "return",
)


@pytest.fixture(scope="module")
def reference(tiny_llama_dir: Path) -> Any:
    return load_folder(tiny_llama_dir, dtype=torch.float32, attn_implementation="sdpa", device="cpu")


def completions(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, batch_size: int = 4, **sampling: Any
) -> dict[tuple[str, int], Completion]:
    settings = Sampling(**{"max_new_tokens": 24, **sampling})
    engine = BatchEngine(model, tokenizer, settings, end_ids=[tokenizer.eos_id], batch_size=batch_size)
    return {(done.prompt.problem_id, done.prompt.sample): done for done in engine.generate(prompts)}


def prompts(stop: tuple[str, ...] = (), samples: int = 1) -> list[Prompt]:
    return [
        Prompt("t", f"p{index}", sample, text, stop) for index, text in enumerate(TEXTS) for sample in range(samples)
    ]


def greedy_by_hand(model: Any, tokenizer: Tokenizer, text: str, count: int) -> list[int]:
    """No cache, no batch, no padding."""
    ids = tokenizer.encode(text)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_id:
            return ids[:-1]
    return ids


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_greedy_text_equals_one_prompt_at_a_time_without_a_cache(
    model: Any, reference: Any, tokenizer: Tokenizer, batch_size: int
) -> None:
    done = completions(model, tokenizer, prompts(), batch_size=batch_size)
    for index, text in enumerate(TEXTS):
        expected = greedy_by_hand(reference, tokenizer, text, 24)[len(tokenizer.encode(text)) :]
        assert done[(f"p{index}", 0)].text == tokenizer.decode(expected, skip_special_tokens=True)


def test_a_sample_is_the_same_in_any_batch_and_order(model: Any, tokenizer: Tokenizer) -> None:
    wanted = prompts(samples=3)
    one = completions(model, tokenizer, wanted, batch_size=2, temperature=1.0, top_p=0.9, seed=7)
    other = completions(model, tokenizer, wanted[::-1], batch_size=5, temperature=1.0, top_p=0.9, seed=7)
    assert {key: done.text for key, done in one.items()} == {key: done.text for key, done in other.items()}
    assert len({done.text for done in one.values()}) > len(TEXTS)


def test_another_seed_gives_other_samples(model: Any, tokenizer: Tokenizer) -> None:
    one = completions(model, tokenizer, prompts(), temperature=1.0, seed=1)
    other = completions(model, tokenizer, prompts(), temperature=1.0, seed=2)
    assert {done.text for done in one.values()}.isdisjoint({done.text for done in other.values()})


def test_text_ends_before_the_first_stop_word_and_is_the_same_up_to_it(model: Any, tokenizer: Tokenizer) -> None:
    whole = completions(model, tokenizer, prompts(), temperature=1.0, seed=3)
    text = whole[("p0", 0)].text
    word = text[7:10]
    done = completions(model, tokenizer, prompts(stop=("not in the text at all", word)), temperature=1.0, seed=3)
    assert done[("p0", 0)].text == text[: text.index(word)]
    assert done[("p0", 0)].finish_reason == "stop"
    assert done[("p0", 0)].tokens < 24


def test_a_text_ends_when_its_complete_lines_are_enough(model: Any, tokenizer: Tokenizer) -> None:
    """`is_whole` is called only at the end of a line, with the complete lines; the text up to there is the same."""
    asked: list[str] = []

    def second_line(lines: str) -> bool:
        asked.append(lines)
        return lines.count("\n") >= 2

    sampling = {"temperature": 1.0, "seed": 5, "max_new_tokens": 200}
    whole = completions(model, tokenizer, prompts()[:3], **sampling)
    texts = {key: done.text for key, done in whole.items() if done.text.count("\n") >= 2}
    assert texts, "no text of two lines to end"
    ended = completions(
        model, tokenizer, [replace(prompt, is_whole=second_line) for prompt in prompts()[:3]], **sampling
    )
    for key, text in texts.items():
        assert ended[key].finish_reason == "stop"
        assert ended[key].tokens < whole[key].tokens
        assert text.startswith(ended[key].text)
        assert ended[key].text.count("\n") >= 2
    assert all(lines.endswith("\n") for lines in asked)


def test_the_limit_ends_a_text_by_length(model: Any, tokenizer: Tokenizer) -> None:
    done = completions(model, tokenizer, prompts()[:1], max_new_tokens=5)[("p0", 0)]
    assert (done.finish_reason, done.tokens) == ("length", 5)


def test_an_eos_token_ends_a_text_and_is_not_in_it(model: Any, reference: Any, tokenizer: Tokenizer) -> None:
    third = greedy_by_hand(reference, tokenizer, TEXTS[0], 3)[-1]
    engine = BatchEngine(model, tokenizer, Sampling(max_new_tokens=24), end_ids=[third])
    done = next(engine.generate(prompts()[:1]))
    assert done.finish_reason == "stop"
    assert done.tokens <= 3
    assert done.text == tokenizer.decode(greedy_by_hand(reference, tokenizer, TEXTS[0], 3)[-3:][: done.tokens - 1])


def test_moving_the_cache_in_a_long_run_changes_no_completion(model: Any, tokenizer: Tokenizer) -> None:
    many = [Prompt("t", f"p{index}", 0, text * (1 + index % 5)) for index, text in enumerate(TEXTS * 5)]
    one_by_one = completions(model, tokenizer, many, batch_size=1, max_new_tokens=60)
    together = completions(model, tokenizer, many, batch_size=3, max_new_tokens=60)
    assert {key: done.text for key, done in together.items()} == {key: done.text for key, done in one_by_one.items()}


def test_prompts_too_long_for_the_model_are_all_named(model: Any, tokenizer: Tokenizer) -> None:
    long = [Prompt("t", "a", 0, "def " * 1000), Prompt("t", "b", 0, "x"), Prompt("t", "c", 0, "")]
    with pytest.raises(GenerationError) as caught:
        completions(model, tokenizer, long)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["a", "c"]
    assert "the model only 512 positions" in str(caught.value)


def test_logits_that_are_not_finite_name_the_model_and_the_prompt(
    damaged: Any, tokenizer: Tokenizer, tiny_llama_dir: Path
) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(GenerationError, match="p4: the model's logits are not finite numbers") as caught:
            completions(damaged, tokenizer, prompts()[4:5], temperature=temperature)
        assert str(caught.value).startswith(f"{tiny_llama_dir}: ")


def test_no_prompts_give_no_completions(model: Any, tokenizer: Tokenizer) -> None:
    assert completions(model, tokenizer, []) == {}
