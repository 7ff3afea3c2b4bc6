"""vLLM's engines, where vLLM is installed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation.engine import Prompt, Sampling

pytest.importorskip("vllm")
PROMPTS = [Prompt("t", f"p{number}", 0, text) for number, text in enumerate(("def add(a, b):", "x = ", "import torch"))]


@pytest.fixture(scope="module")
def tokenizer(wide_headed_llama_dir: Path) -> Tokenizer:
    return load_tokenizer(str(wide_headed_llama_dir))


@pytest.fixture(scope="module")
def engine(wide_headed_llama_dir: Path, tokenizer: Tokenizer) -> Any:
    from mftcoder.generation.vllm_engine import VllmEngine

    return VllmEngine(
        wide_headed_llama_dir, tokenizer, Sampling(20), dtype="float32", end_ids=[tokenizer.eos_id], batch_size=4
    )


def texts(engine: Any, sampling: Sampling, prompts: Sequence[Prompt] = PROMPTS) -> dict[str, str]:
    engine.sampling = sampling
    return {done.prompt.problem_id: done.text for done in engine.generate(prompts)}


def test_greedy_texts_are_those_of_transformers(engine: Any, wide_headed_llama_dir: Path, tokenizer: Tokenizer) -> None:
    import torch

    from mftcoder.generation.batch_engine import BatchEngine
    from mftcoder.models.loading.load import load_folder

    model = load_folder(wide_headed_llama_dir, dtype=torch.float32, device="cpu")
    other = BatchEngine(model, tokenizer, Sampling(20), end_ids=[tokenizer.eos_id])
    assert texts(engine, Sampling(20)) == {done.prompt.problem_id: done.text for done in other.generate(PROMPTS)}


@pytest.mark.parametrize("bounds", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}])
def test_bounds_that_leave_one_token_give_the_greedy_text(engine: Any, bounds: dict[str, Any]) -> None:
    greedy = texts(engine, Sampling(20))
    assert texts(engine, Sampling(20, temperature=2.0, **bounds)) == greedy
    assert texts(engine, Sampling(20, temperature=2.0)) != greedy


def test_a_text_ends_when_its_lines_are_whole(engine: Any) -> None:
    """Sampled at temperature 2, some of the texts have a line break."""
    sampling = Sampling(100, temperature=2.0)
    engine.sampling = sampling
    many = [replace(PROMPTS[0], sample=number) for number in range(8)]
    free = {done.prompt.sample: done for done in engine.generate(many)}
    seen: list[str] = []
    asked = [replace(prompt, is_whole=lambda text: not seen.append(text)) for prompt in many]  # type: ignore[func-returns-value]
    ended = {done.prompt.sample: done for done in engine.generate(asked)}
    broken = [number for number, done in free.items() if "\n" in done.text]
    assert broken and seen and all(text.endswith("\n") for text in seen)
    for number, done in ended.items():
        assert free[number].text.startswith(done.text)
        assert done.tokens <= free[number].tokens
    assert sum(done.tokens for done in ended.values()) < sum(done.tokens for done in free.values())
    assert any(ended[number].finish_reason == "stop" and ended[number].tokens < 100 for number in broken)


@pytest.mark.parametrize(
    "sampling, problem",
    [
        ({"temperature": 2.5}, "vLLM takes temperatures up to 2, not 2.5"),
        ({"temperature": 1.0, "temperature_last": True}, "vLLM applies the temperature first"),
    ],
)
def test_sampling_that_vllm_does_not_have_is_refused_before_it_loads(
    tokenizer: Tokenizer, tmp_path: Path, sampling: dict[str, Any], problem: str
) -> None:
    from mftcoder.generation.vllm_engine import VllmEngine

    with pytest.raises(GenerationError, match=problem):
        VllmEngine(tmp_path / "no model", tokenizer, Sampling(20, **sampling), dtype="float32", end_ids=[])


def test_a_text_that_vllm_refuses_ends_alone(engine: Any, tokenizer: Tokenizer) -> None:
    """The last test: it ends the engine."""
    from queue import SimpleQueue

    from mftcoder.generation.live_engine import Piece, Request
    from mftcoder.generation.vllm_engine import VllmLiveEngine

    events: SimpleQueue[Any] = SimpleQueue()
    with VllmLiveEngine(engine.engine, tokenizer, events.put, {}) as live:
        ids = tokenizer.encode("def add(a, b):")
        ends = frozenset({tokenizer.eos_id})
        given = [Request(ids, Sampling(20, temperature), ends, whole=True) for temperature in (0.0, 5.0)]
        whole, refused = map(live.prepare, given)
        live.queue([whole, refused])
        found: dict[Any, Any] = {}
        while len(found) < 2:
            found.update(events.get(timeout=600))
    assert isinstance(found[whole], Piece)
    assert "temperature must be in [0, 2]" in str(found[refused])
