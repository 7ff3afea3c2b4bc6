"""A folder that `mft data curate` made, seen from its data files: the card that describes them, and the exams that were kept out of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder.cache import content_hash
from mftcoder.data.records.files import SourceFile
from mftcoder.errors import DataError
from mftcoder.jsonl import read_json
from mftcoder.log import warn

MANIFEST, PAGE = "manifest.json", "card.html"


@dataclass(frozen=True)
class Provenance:
    """What is known of a task's training files. `exams`: benchmark -> its source, for those kept out of every one of the files."""

    cards: tuple[str, ...] = ()
    exams: Mapping[str, str] | None = None
    changed: tuple[str, ...] = ()  # files that are not as their card describes them


def described(tasks: Sequence[str], files: Sequence[Sequence[SourceFile]]) -> dict[str, dict[str, Any]]:
    """Cards and exams of each task, for a run's data.json. Warns of files that were changed after their card was made."""
    found = {task: provenance_of(of_task) for task, of_task in zip(tasks, files, strict=True)}
    for task, origin in found.items():
        for path in origin.changed:
            warn(f"warning: task {task}: {path} was changed after its data card was made, so the card does not count")
    return {task: {"cards": origin.cards, "exams": origin.exams} for task, origin in found.items()}


def provenance_of(files: Sequence[SourceFile]) -> Provenance:
    """The cards of these files, found through the manifest in a folder above each. A changed file has none."""
    found = [_of_file(file.path) for file in files]
    exams = [dict(one.exams or {}) for one in found]
    common = {name: source for name, source in exams[0].items() if all(other.get(name) == source for other in exams)}
    cards = dict.fromkeys(card for one in found for card in one.cards)
    return Provenance(tuple(cards), common, tuple(path for one in found for path in one.changed))


def _of_file(path: Path) -> Provenance:
    folder = path.absolute().parent.parent
    manifest = _manifest(folder)
    name = path.absolute().relative_to(folder).as_posix()
    facts = manifest.get("files", {}).get(name)
    if facts is None:
        return Provenance(exams={})
    if content_hash(path) != facts["sha256"]:
        return Provenance(exams={}, changed=(str(path),))
    exams = manifest.get("exams", {}).get(path.absolute().parent.name, {})
    card = PAGE if (folder / PAGE).is_file() else "README.md"  # `mft data synthesize` writes no page
    return Provenance((str(folder / card),), exams)


def files_of(folder: Path) -> list[str] | None:
    """The files that the manifest of a folder names; None without a manifest."""
    try:
        return list(read_json(folder / MANIFEST)["files"])
    except (DataError, KeyError, TypeError):
        return None


def _manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a curated folder; empty for any other folder."""
    try:
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    except DataError:
        return {}
    is_one = isinstance(manifest, dict) and {"mftcoder", "fingerprint", "files", "steps"} <= manifest.keys()
    return manifest if is_one else {}
