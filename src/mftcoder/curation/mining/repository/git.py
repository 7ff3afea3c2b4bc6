"""Read a git repository by its plumbing commands, in bounded memory. A hostile configuration in it runs no code.

No hook, text conversion, external diff, pager or file monitor is started, no object is fetched, and nothing is written.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mftcoder.errors import DataError

_SETTINGS = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.pager": "cat",
    "core.sshCommand": "false",
    "core.askPass": "",
    "diff.external": "",
    "protocol.allow": "never",
}
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ATTR_NOSYSTEM": "1",
    "LC_ALL": "C",
}
_FILES = ("100644", "100755")  # modes of plain files; links and submodules have others
MAX_RENAMES = 200  # files that a commit may add and remove, for renames to be looked for


@dataclass(frozen=True)
class Commit:
    """A commit that is no merge. `subject` is the first line of its message."""

    id: str
    parent: str
    subject: str
    body: str


@dataclass(frozen=True)
class Change:
    """A file that a commit changed and perhaps renamed: its paths and the ids of its contents before and after."""

    old_path: str
    new_path: str
    before: str
    after: str


class GitRepository:
    """An open repository. Use it in a `with` block: two git processes serve its objects."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        self._folder = folder.resolve()
        outer = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        self._environment = {**outer, **_ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(self._folder.parent)}
        self._head = self._first_line("rev-parse", "--verify", "--end-of-options", "HEAD^{commit}")
        self._sizes = self._start("cat-file", "--batch-check=%(objectname) %(objecttype) %(objectsize)")
        self._contents = self._start("cat-file", "--batch")

    def __enter__(self) -> "GitRepository":
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._sizes, self._contents):
            _end(process)

    def _command(self, *arguments: str) -> list[str]:
        settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
        return ["git", "-C", str(self._folder), *settings, *arguments]

    def _start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self._command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
        )

    def _first_line(self, *arguments: str) -> str:
        try:
            done = subprocess.run(self._command(*arguments), capture_output=True, env=self._environment, check=False)
        except FileNotFoundError as error:
            raise DataError("--history needs git, which is not installed. Install it with: apt install git") from error
        if done.returncode:
            self._refuse_without_commits(arguments)
            last = done.stderr.decode(errors="replace").strip().splitlines()[:1]
            raise DataError(f"{self._folder}: cannot be read as a git repository: {''.join(last)}")
        return done.stdout.decode().strip()

    def _refuse_without_commits(self, failed: Sequence[str]) -> None:
        """DataError if the command that failed is not the one that asks for a repository, and there is one: then HEAD has no commit."""
        asked = ("rev-parse", "--git-dir")
        if failed != asked and self._first_line(*asked):
            raise DataError(
                f"{self._folder}: HEAD has no commit that git can read, so there is no history to mine. Commit something first, or leave out --history"
            )

    def count(self) -> int:
        """How many commits before HEAD are no merges."""
        return int(self._first_line("rev-list", "--count", "--no-merges", self._head))

    def commits(self) -> Iterator[Commit | None]:
        """The commits before HEAD that are no merges and have a parent, newest first; None for one that cannot be read."""
        process = self._start("rev-list", "--no-merges", self._head)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                data = self.content(line.decode().strip(), 1 << 20)
                commit = None if data is None else _commit(line.decode().strip(), data)
                if commit is None or commit.parent:
                    yield commit
        finally:
            _end(process)

    def changes(self, commit: Commit, most: int) -> list[Change] | None:
        """The plain files that a commit changed; None if it changed more than `most` files, of any kind."""
        process = self._start(
            *("diff-tree", "-r", "-z", "--raw", "--full-index", "--no-ext-diff", "--no-textconv", "--no-commit-id"),
            *("-M", f"-l{MAX_RENAMES}", commit.parent, commit.id),
        )
        assert process.stdout is not None
        found: list[Change] = []
        count, waiting = 0, b""
        try:
            while part := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                *fields, waiting = (waiting + part).split(b"\0")
                while fields and (entry := _entry(fields)):
                    count, taken, change = count + 1, *entry
                    del fields[:taken]
                    found += [change] if change else []
                waiting = b"\0".join([*fields, waiting])
                if count > most:
                    return None
        finally:
            _end(process)
        return found

    def content(self, name: str, most_bytes: int) -> bytes | None:
        """The bytes of an object; None if it is missing, or has more than `most_bytes`."""
        *_, kind, size = _answer(self._sizes, name).split() or ("", "missing", "0")
        if not size.isdigit() or kind not in ("blob", "commit", "tree") or int(size) > most_bytes:
            return None
        _answer(self._contents, name)
        assert self._contents.stdout is not None
        data = self._contents.stdout.read(int(size) + 1)
        return data[:-1] if len(data) == int(size) + 1 else None


def _answer(process: "subprocess.Popen[bytes]", name: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if "\n" in name:
        return ""
    try:
        process.stdin.write(f"{name}\n".encode())
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline().decode(errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def _commit(name: str, data: bytes) -> Commit:
    head, _, message = data.partition(b"\n\n")
    parents = [line.split()[1].decode() for line in head.split(b"\n") if line.startswith(b"parent ")]
    subject, _, body = message.decode(errors="replace").strip().partition("\n")
    return Commit(name, parents[0] if len(parents) == 1 else "", subject.strip(), body.strip())


def _entry(fields: list[bytes]) -> tuple[int, Change | None] | None:
    """`(fields taken, change)` of the first entry, `:mode mode id id status`, path and perhaps another path; None if it is not complete."""
    old_mode, new_mode, before, after, status = fields[0].decode().lstrip(":").split()
    taken = 3 if status[0] in "RC" else 2
    if len(fields) < taken:
        return None
    is_change = status[0] in "MR" and old_mode in _FILES and new_mode in _FILES
    paths = [path.decode(errors="replace") for path in fields[1:taken]]
    return taken, Change(paths[0], paths[-1], before, after) if is_change else None
