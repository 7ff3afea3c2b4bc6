"""Commands of `mft` that run one after another as processes of their own; a finished one does not run again."""

import shlex
from pathlib import Path
from typing import Any

from mftcoder.errors import MftError, UnjudgedError
from mftcoder.jsonl import JournalFile, has_settings, read_jsonl
from mftcoder.log import say
from mftcoder.processes import run_python

GO_ON = "The same command goes on where this one was."


class Stages:
    """The stages that are done, in `stages.jsonl` below the output folder, which is locked for this process."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        path = out / "stages.jsonl"
        _check_folder(out, path, settings)
        self._file = JournalFile(path, settings, MftError)
        self._file.rewrite(self._file.records)
        self._done = {record["stage"] for record in self._file.records}

    def run(self, name: str, *command: object) -> None:
        """Run `mft COMMAND`, unless it is done. UnjudgedError if its sandbox failed, MftError if it failed otherwise."""
        if name in self._done:
            say(f"{name}: done before")
            return
        words = [str(word) for word in command]
        by_hand = shlex.join(["mft", *words])
        say(f"{name}\n$ {by_hand}")
        code, _ = run_python(["-m", "mftcoder", *words], go_on=GO_ON)
        if code == UnjudgedError.exit_code:
            raise UnjudgedError(f"{name}: could not be judged; the message stands above. {GO_ON} By hand: {by_hand}")
        if code:
            raise MftError(f"{name}: ended with exit code {code}; its message stands above. By hand: {by_hand}")
        self._file.append({"stage": name})
        self._done.add(name)

    def close(self) -> None:
        """Unlock the folder."""
        self._file.close()


def _check_folder(out: Path, path: Path, settings: dict[str, Any]) -> None:
    """MftError if the folder holds something else, or what other settings made."""
    if out.exists() and not out.is_dir():
        raise MftError(f"{out}: is a file. Give another --out")
    if not out.exists() or has_settings(path, settings) or not any(out.iterdir()):
        return
    if not path.is_file():
        raise MftError(f"{out}: holds something else than an `mft improve`. Give another --out")
    first: Any = next((record for _, record in read_jsonl(path)), {})
    before = first.get("settings") if isinstance(first, dict) else None
    if not isinstance(before, dict):
        raise MftError(f"{path}: is damaged: its first line has no settings. Give another --out")
    changed = [name for name in settings if settings[name] != before.get(name)]
    lines = [f"{out}: made with another {name}: {before.get(name)!r}, now {settings[name]!r}" for name in changed]
    raise MftError(*lines, f"{out}: give another --out, or the same settings. Only --rounds may change")
