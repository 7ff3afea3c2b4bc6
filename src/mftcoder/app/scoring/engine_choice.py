"""Choose the engine that writes the completions, and open it on a model.

`auto` takes vLLM on a GPU and OpenVINO on a CPU, where they are installed and were tried with such a model; else transformers.
"""

import importlib.util
from functools import partial
from typing import Any

import torch

from mftcoder.data.rendering.templates import Template
from mftcoder.errors import ConfigError, ModelError, reason
from mftcoder.generation.engine import Engine, Sampling
from mftcoder.kernels.limits import device_limits
from mftcoder.log import say
from mftcoder.models.export.folder import end_ids
from mftcoder.models.export.source import ModelSource
from mftcoder.models.loading.load import stop_tokens
from mftcoder.models.loading.resolve import read_model_config
from mftcoder.models.loading.stored_bits import is_stored_quantized
from mftcoder.registry import ENGINES
from mftcoder.training.backends.process_group import launched_processes

_BATCH_SIZES = {"vllm": 256}  # its cache is paged: a row takes only the memory that it uses
_BATCH_SIZE = 16


def engine_name(
    wanted: str, source: ModelSource, *, device: str, as_trained: bool = False, dtype: str | None = None
) -> str:
    """`wanted`, or for "auto" the fastest one that can run this model here. ConfigError if `wanted` cannot be used."""
    if wanted not in ("auto", "vllm", "openvino"):
        ENGINES.load(wanted)
        return wanted
    without = partial(_without, source, device=device, as_trained=as_trained, dtype=dtype)
    if wanted == "auto":
        on_gpu = device != "cpu" and torch.cuda.is_available()
        name = "vllm" if on_gpu else "openvino"
        # vLLM reads some quantized releases, but that was not tried with this engine.
        untried = is_stored_quantized(source.weights) or (not on_gpu and not _known_to_openvino(source))
        return "transformers" if untried or without(name) else name
    if problem := without(wanted):
        raise ConfigError(f"--engine {wanted}: {problem}")
    return wanted


def _without(source: ModelSource, name: str, *, device: str, as_trained: bool, dtype: str | None) -> str:
    """Why vllm or openvino cannot write this model's completions; empty if it can."""
    if name == "vllm":
        return _without_vllm(source, device=device, as_trained=as_trained)
    return _without_openvino(source, device=device, as_trained=as_trained, dtype=dtype)


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


def _without_openvino(source: ModelSource, *, device: str, as_trained: bool, dtype: str | None) -> str:
    """Why OpenVINO cannot write completions as they are asked for; empty if it can."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed. Use --engine transformers, or pip install 'mftcoder[openvino]'"
    try:
        from mftcoder.models.openvino_model import unsupported
    except (ImportError, AttributeError, OSError) as error:
        return f"this version of OpenVINO does not fit ({reason(error)}). pip install 'mftcoder[openvino]', or use --engine transformers"
    if device.startswith("cuda"):
        return f"--device {device}: it computes on the CPU"
    if as_trained:
        return "it computes with whole weights, merged. Use --engine transformers"
    if dtype not in (None, "float32"):
        return f"--dtype {dtype}: it computes in float32. Use --engine transformers"
    problem = unsupported(_config_of(source).get_text_config())
    return f"{problem}. Use --engine transformers" if problem else ""


def _known_to_openvino(source: ModelSource) -> bool:
    """Whether tests/unit/models/test_openvino_model.py compares a model of this family, and nothing stands against this one."""
    return _config_of(source).model_type in OPENVINO_FAMILIES and launched_processes() == 1


def _config_of(source: ModelSource) -> Any:
    return read_model_config(source.weights, name=source.name, trust_remote_code=source.trust_remote_code)


OPENVINO_FAMILIES = frozenset(
    ["gemma", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "starcoder2"]
)
"""Families of models that `auto` runs with OpenVINO."""


class NotCompiledError(ModelError):
    """OpenVINO cannot run a model that is not damaged: the transformers engine may."""

    def tell_other_engine(self) -> None:
        """Log why the transformers engine takes OpenVINO's place."""
        say(f"{self.__cause__}; the transformers engine takes its place")


def compiled(model: Any) -> Any:
    """The model as OpenVINO runs it. NotCompiledError if it cannot."""
    from mftcoder.models.openvino_model import OpenVinoModel

    say("compiling the model for this CPU with OpenVINO")
    try:
        return OpenVinoModel(model)
    except ModelError as error:
        raise NotCompiledError(*(f"{problem}. Use --engine transformers" for problem in error.problems)) from error


def tell_emulation(device: torch.device | str, dtype: torch.dtype) -> None:
    """Log where the transformers engine would be faster in float32."""
    for limit in device_limits(torch.device(device), dtype):
        if limit.what == "bfloat16":
            say(f"{limit.what}: {limit.lack}; {limit.cost}. --dtype float32")


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

    NotCompiledError if `name` is openvino, and it cannot run the model. `end_token` also ends a text, besides the model's own EOS tokens.
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
    if name == "transformers":
        tell_emulation(device, dtype)
    model = source.load(device=device, dtype=dtype, as_trained=as_trained)
    if name == "openvino":
        model = compiled(model)
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
