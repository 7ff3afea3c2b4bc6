"""A model in vLLM's engine, with vLLM's own flags."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine

from mftcoder.errors import ConfigError, ModelError, reason
from mftcoder.jsonl import read_json
from mftcoder.models.export.source import ModelSource
from mftcoder.models.layers.adapters import ADAPTER_CONFIG

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # largest ranks that vLLM can be told
_OURS = {
    "model": "MODEL",
    "tokenizer": "MODEL",
    "dtype": "--dtype",
    "max_model_len": "--cache-tokens",
    "max_num_seqs": "--batch-size",
    "trust_remote_code": "--trust-remote-code",
    "enable_lora": "--adapter",
    "max_loras": "--adapter",
    "max_lora_rank": "--adapter",
    "skip_tokenizer_init": "MODEL",
    "served_model_name": "--name",
}
"""Flags of vLLM -> our option, which sets them."""


def open_vllm(
    source: ModelSource,
    adapters: Mapping[str, Path],
    *,
    context: int,
    dtype: str | None,
    batch_size: int,
    flags: Sequence[str],
) -> tuple[Any, dict[str, LoRARequest]]:
    """The engine with model and adapters loaded, and vLLM's name of each adapter. ConfigError for a wrong flag, ModelError if it cannot load."""
    given = parse_flags(flags)
    ranks = [int(read_json(folder / ADAPTER_CONFIG).get("r", 8)) for folder in adapters.values()]
    lora = {"enable_lora": True, "max_loras": len(ranks), "max_lora_rank": _allowed(max(ranks))} if ranks else {}
    arguments = replace(
        given,
        model=str(source.weights),
        dtype=str(source.dtype(dtype)).removeprefix("torch."),
        max_model_len=context,
        max_num_seqs=batch_size,
        trust_remote_code=source.trust_remote_code,
        skip_tokenizer_init=True,  # it reads and writes token ids
        **lora,
    )
    requests = {name: LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(adapters.items(), 1)}
    try:
        engine = LLMEngine.from_engine_args(arguments)
        for request in requests.values():
            engine.add_lora(request)
    except (ValueError, RuntimeError, OSError) as error:  # vLLM's own process has printed the details
        raise ModelError(
            f"{source.weights}: vLLM cannot open it: {reason(error)}. Use --engine transformers"
        ) from error
    return engine, requests


def parse_flags(flags: Sequence[str]) -> EngineArgs:
    """The engine's arguments from flags of vLLM's command line. ConfigError for those that do not exist, and for those that we set."""
    parser = EngineArgs.add_cli_args(_Parser(prog="vllm", add_help=False))
    arguments: EngineArgs = EngineArgs.from_cli_args(parser.parse_args(list(flags)))
    parser.set_defaults(**dict.fromkeys(_OURS))
    given = parser.parse_args(list(flags))
    problems = [
        f"--{name.replace('_', '-')}: is set by {option}; give that instead"
        for name, option in _OURS.items()
        if getattr(given, name) is not None
    ]
    if problems:
        raise ConfigError.collect(problems)
    return arguments


class _Parser(FlexibleArgumentParser):
    """Raises what argparse would print."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"vLLM's flags: {message}")


def _allowed(rank: int) -> int:
    if rank > _RANKS[-1]:
        raise ConfigError(f"--adapter: rank {rank} is above {_RANKS[-1]}, the most that vLLM takes")
    return next(allowed for allowed in _RANKS if allowed >= rank)
