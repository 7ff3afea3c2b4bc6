"""Which version of FlashAttention a run takes: the newest that proves itself where the config leaves the choice, else torch's own."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from mftcoder.app.training import train
from mftcoder.config.load import parse_config
from mftcoder.kernels import flash


@pytest.mark.parametrize(
    ("asked", "chosen", "tried"),
    [("auto", "varlen", True), ("auto", "segments", False), ("varlen", "varlen", False)],
)
def test_only_auto_tries_newer_versions_and_only_where_samples_are_attended_by_their_kernels(
    monkeypatch: pytest.MonkeyPatch, said: Callable[[], str], asked: str, chosen: str, tried: bool
) -> None:
    config = parse_config(
        {"model": {"model_name_or_path": "m", "attn_implementation": asked}, "tasks": {"t": "d"}, "output_dir": "o"},
        origin="test",
    )
    model: Any = SimpleNamespace(causal_lm=SimpleNamespace(config=LlamaConfig()), attn_implementation=None)
    backend: Any = SimpleNamespace(device=torch.device("cuda"), group=SimpleNamespace(context=SimpleNamespace(size=1)))
    store: Any = SimpleNamespace(tasks=())
    asked_for: list[flash.Heads] = []

    def newest(device: torch.device, heads: flash.Heads, say: Any) -> flash.FlashVersion:
        asked_for.append(heads)
        return flash.VERSIONS[0]

    monkeypatch.setattr(train, "probe_samples", lambda *_: None)
    monkeypatch.setattr(train, "choose_attention", lambda *_: setattr(model, "attn_implementation", chosen))
    monkeypatch.setattr(flash, "use_newest", newest)
    train._choose_attention(config, model, store, backend)
    assert asked_for == ([flash.Heads(32, 32, 128, 128)] if tried else [])
    assert ("attention: FlashAttention 3, which gives" in said()) is tried
