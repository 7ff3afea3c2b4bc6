"""What tells two models apart whose names are equal: a hash of what they compute with."""

from typing import Any

import torch
import xxhash

from mftcoder import cache
from mftcoder.models.export.source import ModelSource
from mftcoder.models.files.download import PICKLED_WEIGHTS, SAFE_WEIGHTS

_SHAPES_OUTPUT = (
    *SAFE_WEIGHTS,
    *PICKLED_WEIGHTS,
    "*.py",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
)


def fingerprint(source: ModelSource) -> str:
    """A hash of the content of weights, adapter and their configs. The hashes of large files are cached."""
    if source.loaded is not None:
        return _of_tensors(source.loaded)
    folders = [folder for folder in (source.weights, source.adapter) if folder]
    return cache.key(*(path for folder in folders for name in _SHAPES_OUTPUT for path in sorted(folder.glob(name))))


def _of_tensors(model: Any) -> str:
    """A hash of the weights of a model in memory, and of its config."""
    digest = xxhash.xxh3_128(model.config.to_json_string(use_diff=False).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(weight.shape)}:{weight.dtype}:".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
