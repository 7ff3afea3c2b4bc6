"""The model that a user names, with what its training decides about its use: template, end tokens, the text around an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mftcoder.app.scoring.engine_choice import NotCompiledError, compiled, engine_name, tell_emulation
from mftcoder.config.data import DataConfig
from mftcoder.data.rendering.templates import Template, load_template, text_after_answer
from mftcoder.errors import ConfigError
from mftcoder.log import say
from mftcoder.models.export.folder import end_ids
from mftcoder.models.export.source import ModelSource, find_source
from mftcoder.models.loading.load import stop_tokens
from mftcoder.serving.catalogue import Catalogue, Served

CACHE_TOKENS = 32768
"""Default size of the key-value cache: rows times columns."""


@dataclass(frozen=True)
class Usage:
    """How a model is talked to."""

    template: Template | None
    """None for a model without a chat template."""
    end_ids: frozenset[int]
    """Tokens that end a completion."""
    chat_end_ids: frozenset[int]
    """Tokens that end an answer of a chat."""
    tail: str
    """What the template writes between an answer and its end token."""


def choose_source(model: str, *, checkpoint: str, trust_remote_code: bool) -> ModelSource:
    """The model that a user named. ConfigError for a checkpoint of something that is no run."""
    source = find_source(model, checkpoint=checkpoint, trust_remote_code=trust_remote_code)
    if checkpoint != "best" and source.run is None:
        raise ConfigError(f"--checkpoint {checkpoint}: {source.name} is no run folder")
    return source


def usage_of(source: ModelSource, template: str | None = None) -> Usage:
    """The template in the options, else that of the run, else the tokenizer's own, and the end tokens that go with it."""
    data = source.run.data if source.run else DataConfig()
    if template:
        data = DataConfig(chat_template=template)
    try:
        found: Template | None = load_template(data, source.tokenizer)
    except ConfigError:
        if template or (source.run and source.run.data.chat_template != "auto"):
            raise
        found = None
    ends = frozenset(stop_tokens(source.weights, source.tokenizer))
    if found is None:
        return Usage(None, ends, ends, "")
    tail = text_after_answer(found, source.tokenizer)
    return Usage(found, ends, ends | end_ids(source.tokenizer, found.end), tail)


def load_model(
    source: ModelSource, *, device: str, dtype: str | None, hold: str | None = None, engine: str = "auto"
) -> Any:
    """The model in memory, as `engine` (transformers, openvino or auto) runs it. `hold` is 4bit or 8bit.

    What OpenVINO cannot run is a NotCompiledError with openvino, and a model of transformers with auto.
    """
    wanted = "transformers" if engine == "auto" and hold else engine
    name = engine_name(wanted, source, device=device, dtype=dtype)  # vllm for auto where it could be served, too
    if name == "openvino" and hold:
        raise ConfigError(f"--load {hold}: OpenVINO has whole weights. Use --engine transformers")
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    load = partial(source.load, device=chosen, hold=hold)
    if name == "openvino":
        try:
            return compiled(load(dtype=source.dtype(dtype, float16=True)))
        except NotCompiledError as error:
            if engine != "auto":
                raise
            error.tell_other_engine()
    tell_emulation(chosen, source.dtype(dtype))
    return load(dtype=source.dtype(dtype))  # after the block, whose error keeps the other copy in memory


def served_model(source: ModelSource, name: str, template: str | None = None) -> Served:
    """The model under a name, with the template of its training; without one it has no chat."""
    usage = usage_of(source, template)
    return Served(name, None, usage.template, usage.chat_end_ids, usage.tail)


def catalogue_of(
    served: Sequence[Served], source: ModelSource, config: Any, cache_tokens: int = CACHE_TOKENS
) -> Catalogue:
    """What is served, with the context that the model's config and the cache leave."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    context = min(int(positions or cache_tokens), cache_tokens)
    if positions and cache_tokens < int(positions):
        say(f"the context is {context:,} tokens instead of {int(positions):,}, as --cache-tokens has it")
    return Catalogue(served, source.tokenizer, frozenset(stop_tokens(source.weights, source.tokenizer)), context)
