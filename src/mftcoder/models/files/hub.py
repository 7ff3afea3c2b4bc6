"""The Hugging Face Hub and the model cache: an id becomes a local folder, or an error that says how to get one.

Fetches the small files (config, tokenizer) apart from the weights, so that a config can be checked before gigabytes move.
Loads nothing.
"""

import os
import socket
import urllib.parse
from pathlib import Path

from mftcoder.cache import cache_root
from mftcoder.errors import ModelError

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
SAFE_WEIGHTS = ("*.safetensors",)
PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth")


def models_cache() -> Path:
    """Where converted models are kept: $MFTCODER_CACHE/models, else ~/.cache/mftcoder/models."""
    return cache_root() / "models"


def hub_answers(*, timeout_seconds: float = 3.0) -> bool:
    """Whether a connection to the Hub (or $HF_ENDPOINT) can be opened; never raises, never waits longer than asked."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxy = os.environ.get(f"{url.scheme}_proxy") or os.environ.get(f"{url.scheme.upper()}_PROXY")
    target = urllib.parse.urlsplit(proxy) if proxy else url
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        socket.create_connection((target.hostname or "", port), timeout=timeout_seconds).close()
    except OSError:
        return False
    return True


def fetch(repository: str, *, weights: bool, pickled: bool = False) -> Path:
    """The local snapshot of a Hub repository, with or without its weights; ModelError if it is neither cached nor reachable."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*SMALL_FILES, *(SAFE_WEIGHTS if weights else ()), *(PICKLED_WEIGHTS if weights and pickled else ())]
    offline = not hub_answers()
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns, local_files_only=offline))
    except HFValidationError as error:
        raise ModelError(f"{repository}: neither a folder here nor a Hub id (owner/name)") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository}: no such folder here, and the Hub does not answer. Give the path of a local folder in Hugging "
            "Face layout or of a .gguf file, or fetch the model where the Hub can be reached"
        ) from error
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{repository}: the Hub refuses it: {reason}. A private or gated model needs `hf auth login`"
        ) from error
