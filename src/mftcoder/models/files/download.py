"""Download the files of a model from the Hub, and the cache folder of converted models.

The small files (config, tokenizer) are fetched before the weights, so that a config is checked before gigabytes are downloaded.
"""

from pathlib import Path

from mftcoder.cache import cache_root
from mftcoder.errors import ModelError
from mftcoder.hub import download_snapshot, hub_errors

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
SAFE_WEIGHTS = ("*.safetensors",)
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth")


def models_cache() -> Path:
    """Where converted models are kept: $MFTCODER_CACHE/models, else ~/.cache/mftcoder/models."""
    return cache_root() / "models"


def fetch(repository: str, *, weights: bool, pickled: bool = False) -> Path:
    """The local snapshot of a Hub repository, with or without its weights; ModelError if it is neither cached nor reachable."""
    patterns = [*SMALL_FILES, *(SAFE_WEIGHTS if weights else ()), *(PICKLED_WEIGHTS if weights and pickled else ())]
    advice = (
        "Give a local folder in Hugging Face layout or a .gguf file, or fetch the model where the Hub can be reached"
    )
    with hub_errors(f"{repository}: no such folder", advice=advice, kind=ModelError):
        return download_snapshot(repository, patterns)
