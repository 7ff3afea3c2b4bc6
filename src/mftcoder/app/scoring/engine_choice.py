"""Choose the engine that writes the completions, and open it on a model. vLLM is chosen if it is installed and can read the model."""

import importlib.util
from typing import Any

import torch

from mftcoder.data.rendering.templates import Template
from mftcoder.errors import ConfigError
from mftcoder.generation.engine import Engine, Sampling
from mftcoder.models.export.folder import end_ids
from mftcoder.models.export.source import ModelSource
from mftcoder.models.loading.load import stop_tokens
from mftcoder.models.loading.stored_bits import is_stored_quantized
from mftcoder.registry import ENGINES
from mftcoder.training.backends.process_group import launched_processes

_BATCH_SIZES = {"vllm": 256}  # its cache is paged: a row takes only the memory that it uses
_BATCH_SIZE = 16


def engine_name(wanted: str, source: ModelSource, *, device: str, as_trained: bool) -> str:
    """`wanted`, or for "auto" vllm if it can run this model here, else transformers. ConfigError if `wanted` cannot be used."""
    if wanted not in ("auto", "vllm"):
        ENGINES.load(wanted)
        return wanted
    problem = _without_vllm(source, device=device, as_trained=as_trained)
    if wanted == "auto":
        # vLLM reads some quantized releases, but that was not tried with this engine.
        elsewhere = device == "cpu" or not torch.cuda.is_available() or is_stored_quantized(source.weights)
        return "transformers" if problem or elsewhere else "vllm"
    if problem:
        raise ConfigError(f"--engine vllm: {problem}")
    return wanted


def _without_vllm(source: ModelSource, *, device: str, as_trained: bool) -> str:
    """Why vLLM cannot write this model's completions; empty if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed. Use --engine transformers, or pip install vllm in an environment with its torch"
    if source.adapter is not None or as_trained or source.weights.suffix == ".gguf":
        return "it reads a folder of whole weights. Export first: mft export RUN FOLDER, then give the FOLDER"
    if launched_processes() > 1:
        return "it spreads by itself. Start one process, or use --engine transformers"
    if ":" in device:
        return f"--device {device}: choose its GPU with CUDA_VISIBLE_DEVICES"
    return ""


def open_engine(
    name: str,
    source: ModelSource,
    sampling: Sampling,
    template: Template | None,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    batch_size: int | None,
    as_trained: bool,
    end_token: str | None = None,
) -> Engine:
    """The engine `name` with the model loaded. With a chat `template`, the template's end token ends a text and the engine adds no BOS.

    `end_token` also ends a text, besides the model's own EOS tokens.
    """
    ends = set(stop_tokens(source.weights, source.tokenizer))
    if end_token is not None:
        ends.add(end_token_id(source, end_token))
    if template:
        ends |= end_ids(source.tokenizer, template.end)
    options: dict[str, Any] = {
        "end_ids": sorted(ends),
        "batch_size": batch_size or _BATCH_SIZES.get(name, _BATCH_SIZE),
        "add_special_tokens": template is None,
    }
    kind = ENGINES.load(name)
    if name == "vllm":
        options |= {"dtype": str(dtype).removeprefix("torch."), "trust_remote_code": source.trust_remote_code}
        return kind(source.weights, source.tokenizer, sampling, **options)
    model = source.load(device=device, dtype=dtype, as_trained=as_trained)
    return kind(model, source.tokenizer, sampling, **options)


def end_token_id(source: ModelSource, end_token: str) -> int:
    """The id of a token that the user named. ConfigError if the tokenizer has no such token."""
    found = source.tokenizer.backend.token_to_id(end_token)
    if found is None:
        raise ConfigError(
            f"--end-token {end_token}: the tokenizer of {source.name} has no such token. Its own EOS token is "
            f"{source.tokenizer.eos_token}"
        )
    return int(found)
