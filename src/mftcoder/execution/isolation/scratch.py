"""The scratch folder of a slot: made new for every program, and removed with everything that the program wrote there.

Removing relies on nothing that a program can choose: the depth of its folders, the length of their names, their modes.
"""

import fcntl
import itertools
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_BATCH = 1000  # entries listed together, so that a folder of millions takes little memory


class Scratch:
    """The folder `path` inside the slot's folder. `uid`: the user that programs run as, who then owns it; None: the caller."""

    def __init__(self, slot_folder: str, uid: int | None):
        self.slot_folder, self.uid = slot_folder, uid
        self.path = f"{slot_folder}/run"

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove everything but the top-level names in `keep`. Without such names, replace the folder by a new one.

        A new one, because a folder has more than its entries: a mode, times, attributes.
        """
        if keep:
            with _opened(self.path) as folder:
                _empty(folder, keep)
            return
        with _opened(self.slot_folder) as folder:
            _empty(folder)
        os.mkdir(self.path, 0o700)  # noqa: PTH102
        self._give_to_user(self.path)

    def write(self, files: Mapping[str, str]) -> None:
        """Write these files; a name may contain folders."""
        for name, text in files.items():
            for parent in reversed(Path(name).parents[:-1]):
                folder = Path(self.path, parent)
                if not folder.is_dir():
                    folder.mkdir()
                    self._give_to_user(str(folder))
            path = f"{self.path}/{name}"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:  # noqa: PTH123
                file.write(text)
            self._give_to_user(path)

    def _give_to_user(self, path: str) -> None:
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)


def remove_tree(path: Path) -> None:
    with _opened(str(path)) as folder:
        _empty(folder)
    path.rmdir()


def lock(path: Path, *, wait: bool = False) -> int:
    """Lock a file or folder; closing the returned descriptor, or the end of the process, releases it.

    If another process holds the lock: OSError, or with `wait` wait for it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block us
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_unlocked(folder: Path) -> None:
    """Remove a folder whose owner has ended; OSError if the owner still holds its lock."""
    descriptor = lock(folder)
    try:
        remove_tree(folder)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: str, within: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(folder: int, keep: Collection[str] = ()) -> list[tuple[str, bool]]:
    """Some of a folder's entries, each with whether it is a folder; [] if none is left."""
    with os.scandir(folder) as entries:
        wanted = ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in keep)
        return list(itertools.islice(wanted, _BATCH))


def _empty(folder: int, keep: Collection[str] = ()) -> None:
    """Empty an open folder. Folders inside its folders are moved up first, so that no path gets too long."""
    while found := _entries(folder, keep):
        for name, is_folder in found:
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif not _removed(name, folder):
                _move_up(name, folder)
                os.rmdir(name, dir_fd=folder)


def _removed(name: str, folder: int) -> bool:
    """Remove a folder if it is empty."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _move_up(name: str, folder: int) -> None:
    """Empty the folder `name`: remove its files, move its folders up beside it."""
    os.chmod(name, 0o700, dir_fd=folder)
    with _opened(name, folder) as inner:
        while found := _entries(inner):
            for entry, is_folder in found:
                if is_folder:
                    os.chmod(entry, 0o700, dir_fd=inner)  # moving it changes its ".."
                    os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=folder)
                else:
                    os.unlink(entry, dir_fd=inner)
