"""The checksums of a folder: MANIFEST.md5 and MANIFEST.sha256, written at export, verified after a copy.

They have the format of `md5sum` and `sha256sum` (digest, two spaces, path), so `md5sum -c MANIFEST.md5` works without this project.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mftcoder.errors import ModelError
from mftcoder.jsonl import write_text

MANIFESTS = {"md5": "MANIFEST.md5", "sha256": "MANIFEST.sha256"}
CHUNK = 1 << 20


def write_manifests(folder: Path) -> None:
    """Write both manifests over all files below `folder`, sorted by path."""
    digests = {name: _digests(folder / name) for name in _files(folder)}
    for algorithm, manifest in MANIFESTS.items():
        write_text(folder / manifest, "".join(f"{found[algorithm]}  {name}\n" for name, found in digests.items()))


def verify(folder: Path) -> list[str]:
    """One line for each file that is changed, missing or not listed. ModelError without a manifest."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder")
    listed = {algorithm: _read(folder / name) for algorithm, name in MANIFESTS.items() if (folder / name).is_file()}
    if not listed:
        raise ModelError(
            f"{folder}: has neither MANIFEST.md5 nor MANIFEST.sha256, so there is nothing to verify it against"
        )
    return list(_differences(folder, listed))


def _differences(folder: Path, listed: dict[str, dict[str, str]]) -> Iterator[str]:
    present = _files(folder)
    names = sorted({name for manifest in listed.values() for name in manifest} | set(present))
    for name in names:
        algorithms = [algorithm for algorithm, manifest in listed.items() if name in manifest]
        if name not in present:
            yield f"{folder / name}: is missing"
        elif not algorithms:
            yield f"{folder / name}: is not in the manifest"
        else:
            found = _digests(folder / name)
            wrong = [algorithm for algorithm in algorithms if found[algorithm] != listed[algorithm][name]]
            if wrong:
                yield f"{folder / name}: has changed (by its {' and '.join(wrong)})"


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in MANIFESTS.values())


def _digests(path: Path) -> dict[str, str]:
    """Both digests, from reading the file once."""
    hashes = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in MANIFESTS}
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for one in hashes.values():
                one.update(chunk)
    return {algorithm: one.hexdigest() for algorithm, one in hashes.items()}


def _read(path: Path) -> dict[str, str]:
    entries = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        if not separator or not name:
            raise ModelError(f"{path}:{number}: is not a line of md5sum: 'digest, two spaces, path'")
        entries[name] = digest
    return entries
