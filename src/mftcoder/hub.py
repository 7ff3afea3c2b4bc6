"""The Hugging Face Hub: whether it can be reached, downloads from it, and one line for every way in which they fail.

What a repository holds is the callers' business.
"""

import os
import socket
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mftcoder.errors import MftError, reason


def is_reachable(*, timeout_seconds: float = 3.0) -> bool:
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


def download_snapshot(repository: str, patterns: Sequence[str]) -> Path:
    """The local folder with the files of a repository that match `patterns`; the cached one where the Hub does not answer."""
    from huggingface_hub import snapshot_download  # slow to import, and not needed for local folders

    return Path(snapshot_download(repository, allow_patterns=list(patterns), local_files_only=not is_reachable()))


@contextmanager
def hub_errors(what: str, *, advice: str, kind: type[MftError]) -> Iterator[None]:
    """Turn whatever the Hub's libraries raise in this block into one `kind`: `<what>, and <why the Hub failed>. <advice>`.

    `what` says what was not found locally, for example "me/data: no such file or folder".
    """
    try:
        yield
    except MftError:
        raise
    except Exception as error:  # the Hub's libraries raise many kinds, down to those of their HTTP client
        raise kind(f"{what}{_why(error)}. {advice}") from error


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"; a download from the Hub needs the package {error.name}: pip install 'mftcoder[hub]'"
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if isinstance(error, HFValidationError):
        return ", and it is not the id of a Hub repository (owner/name)"
    if isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError):
        return ", and the Hub does not answer"
    if isinstance(error, HfHubHTTPError):
        return f", and the Hub refuses it: {reason(error)}. A private or gated repository needs `hf auth login`"
    if not is_reachable():  # an error of the HTTP client, whose types depend on its version
        return ", and the Hub does not answer"
    return f", and the download from the Hub failed: {reason(error)}"
