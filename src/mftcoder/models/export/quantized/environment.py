"""The environment of llmcompressor: made once in the cache, on top of the running one, and used by running `worker.py` in it.

llmcompressor wants other versions of transformers and torch than a training has, so it is never installed beside them. The environment sees
the packages of the running one, and pip installs into it only what is missing or does not fit.
"""

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mftcoder import cache
from mftcoder.errors import ModelError
from mftcoder.jsonl import locked, read_json, write_text
from mftcoder.log import say
from mftcoder.models.export.quantized.texts import Measured, Texts

REQUIREMENT = "llmcompressor>=0.14,<0.15"
READY = "ready.txt"


def python_of_llmcompressor(given: str | None = None) -> Path:
    """The interpreter that has llmcompressor: the given one, or that of the environment in the cache, which is made on first use.

    ModelError if it cannot be made, with pip's reason.
    """
    if given:
        return _checked(Path(given))
    name = cache.key(REQUIREMENT, sys.version, *map(str, _site_packages()))
    folder = cache.cache_root() / "environments" / f"llmcompressor-{name}"
    with locked(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / READY).is_file():
            _make(folder)
    return folder / "bin" / "python"


def _checked(python: Path) -> Path:
    command = [str(python), "-P", "-c", "import llmcompressor"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ModelError(f"--python {python}: cannot be run: {error.strerror or error}") from error
    if done.returncode:
        raise ModelError(f"--python {python}: cannot import llmcompressor: {_last_line(done.stderr)}")
    return python


def _make(folder: Path) -> None:
    say(f"installing {REQUIREMENT} once into {folder}")
    venv.create(folder, with_pip=True, clear=True)
    own = next((folder / "lib").glob("python*/site-packages"))
    write_text(own / "of-mftcoder.pth", "".join(f"{path}\n" for path in _site_packages()))
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelError(
            f"{REQUIREMENT}: cannot be installed: {_last_line(done.stderr)}. Install it in an environment of your own and give --python "
            "ENVIRONMENT/bin/python"
        )
    write_text(folder / READY, done.stdout)


def _site_packages() -> Sequence[Path]:
    """The folders of the running interpreter's packages, in its order; an environment may stand on top of another one."""
    own = (sysconfig.get_path(name) for name in ("purelib", "platlib"))
    below = (path for path in sys.path if Path(path).name in ("site-packages", "dist-packages"))
    return list(dict.fromkeys(map(Path, (*own, *below))))


def run_job(
    python: Path, job: Mapping[str, Any], texts: Texts, folder: Path
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Run one job in the environment, in `folder`. Returns what was measured, and the versions. ModelError with its last line if it fails."""
    as_lists = {task: [(text.ids.tolist(), text.targets.tolist()) for text in group] for task, group in texts.items()}
    (folder / "job.json").write_text(json.dumps({**job, "texts": as_lists}), encoding="utf-8")
    worker = Path(__file__).with_name("worker.py")
    command = [str(python), "-P", str(worker), str(folder / "job.json")]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, cwd=folder, check=False)
    if done.returncode:
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        raise ModelError(f"{job['method']}: llmcompressor failed: {_last_line(text)}")
    result = read_json(folder / "result.json")
    measured = {
        task: Measured(total / tokens if tokens else float("nan"), tokens, len(texts[task]))
        for task, (total, tokens) in result["losses"].items()
    }
    return measured, result["versions"]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
