"""The throw-away folder of a slot: made new for every program, removed with all that the program has put there.

Goes in: a folder that belongs to the slot. Comes out: `path`, a folder inside it that programs own. Removing relies on nothing
that a program can choose: how deep its folders are, how long their names, with which modes they were left.
"""

import fcntl
import itertools
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_BATCH = 1000  # entries looked at together, so that a folder of millions takes no memory


class Scratch:
    """One slot's folder. `uid`: programs run as this user; None: as the caller."""

    def __init__(self, slot_folder: str, uid: int | None):
        self.slot_folder, self.uid = slot_folder, uid
        self.path = f"{slot_folder}/run"

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove all but the top-level names in `keep`; without any, a new folder takes the place of the old one.

        A new one because a folder carries more than its entries: a mode, times, attributes.
        """
        if keep:
            with _opened(self.path) as folder:
                _empty(folder, keep)
            return
        with _opened(self.slot_folder) as folder:
            _empty(folder)
        os.mkdir(self.path, 0o700)  # noqa: PTH102
        self._hand_over(self.path)

    def write(self, files: Mapping[str, str]) -> None:
        """Write these texts; names may hold folders."""
        for name, text in files.items():
            for parent in reversed(Path(name).parents[:-1]):
                folder = Path(self.path, parent)
                if not folder.is_dir():
                    folder.mkdir()
                    self._hand_over(str(folder))
            path = f"{self.path}/{name}"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:  # noqa: PTH123
                file.write(text)
            self._hand_over(path)

    def _hand_over(self, path: str) -> None:
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it."""
    with _opened(str(path)) as folder:
        _empty(folder)
    path.rmdir()


def lock(folder: Path) -> int:
    """A descriptor of the folder with its lock; OSError if another process holds it. A process that ends gives its locks up."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_unlocked(folder: Path) -> None:
    """Remove a folder whose owner has ended; OSError if it has not."""
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
    """The names of some entries, and whether they are folders; [] when none is left."""
    with os.scandir(folder) as entries:
        wanted = ((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in keep)
        return list(itertools.islice(wanted, _BATCH))


def _empty(folder: int, keep: Collection[str] = ()) -> None:
    """Remove all in an open folder. What lies in a folder of it is moved up first, so that no path is ever long."""
    while found := _entries(folder, keep):
        for name, is_folder in found:
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif not _removed(name, folder):
                _move_up(name, folder)
                os.rmdir(name, dir_fd=folder)


def _removed(name: str, folder: int) -> bool:
    """Remove a folder that is empty."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError:
        return False
    return True


def _move_up(name: str, folder: int) -> None:
    """Empty the folder `name`: its files are removed, its folders go to where it lies itself."""
    os.chmod(name, 0o700, dir_fd=folder)
    with _opened(name, folder) as inner:
        while found := _entries(inner):
            for entry, is_folder in found:
                if is_folder:
                    os.chmod(entry, 0o700, dir_fd=inner)  # moving it changes its ".."
                    os.rename(entry, secrets.token_hex(16), src_dir_fd=inner, dst_dir_fd=folder)
                else:
                    os.unlink(entry, dir_fd=inner)
