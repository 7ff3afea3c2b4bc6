"""The curated folder: what is in it, how it is put together, and when it may replace an older one.

    <task>/train.jsonl        the kept records, byte for byte as they were, in the order of the input
    validation/<task>.jsonl   those of the validation files
    dropped.jsonl             one line a dropped record: task, step, rule, value, origin
    manifest.json             counts, statistics, the recipe, input and output files with checksums
    README.md, card.html      the data card, and the same as a page

The folder is put together in the work folder, block by block, and takes its name when it is complete.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder import __version__
from mftcoder.cache import content_hash
from mftcoder.curation.pipeline.blocks import KEPT, BlockReport, dropped_path, kept_path
from mftcoder.curation.pipeline.recipe import Recipe
from mftcoder.curation.pipeline.run import BlockFiles, Outcome
from mftcoder.data.records.curated import MANIFEST, PAGE, files_of
from mftcoder.data.records.files import TaskSources
from mftcoder.errors import DataError
from mftcoder.jsonl import names_in_errors, read_json, write_json, write_text

CARD = "README.md"
DROPPED = "dropped.jsonl"
_GRAMS_LISTED = 100


@dataclass(frozen=True)
class Made:
    """A finished curation."""

    folder: Path
    manifest: Mapping[str, Any]

    def task_lines(self) -> list[str]:
        """The section `tasks` of a run's config that trains on the folder; `tasks: FOLDER` means the same."""
        lines = ["tasks:"]
        for name, task in self.manifest["tasks"].items():
            if f"{name}/train.jsonl" not in self.manifest["files"]:
                continue
            fields = [f"path: {self.folder / name}"]
            if f"validation/{name}.jsonl" in self.manifest["files"]:
                fields.append(f"validation: {self.folder / 'validation' / name}.jsonl")
            if task["format"] != "auto":
                fields.append(f"format: {task['format']}")
            lines.append(f"  {name}: {{{', '.join(fields)}}}")
        return lines


def refuse_foreign_files(folder: Path) -> None:
    """DataError if `folder` holds anything that a curation has not written: it would be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file. Choose another output directory")
    written = {MANIFEST, CARD, PAGE, *files} if (files := files_of(folder)) is not None else set()
    foreign = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() and path.relative_to(folder).as_posix() not in written
    )
    if foreign:
        raise DataError(
            f"{folder}: holds files that no curation has written: {', '.join(foreign[:3])}"
            f"{' ...' if len(foreign) > 3 else ''}. Choose another output directory, or move them"
        )


def finished(folder: Path, fingerprint: str) -> Made | None:
    """The result of the same curation if it is there and its files are as they were written; else None."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["fingerprint"] != fingerprint:
            return None
        files = [(folder / name, facts) for name, facts in manifest["files"].items()]
        for path, facts in [*files, *((Path(facts["path"]), facts) for facts in manifest["preferences"])]:
            if content_hash(path) != facts["sha256"]:
                return None
    except (DataError, KeyError, TypeError):
        return None
    return Made(folder, manifest)


def write_output(
    recipe: Recipe,
    sources: Sequence[TaskSources],
    outcome: Outcome,
    records: "RecordFiles",
    fingerprint: str,
    facts: Mapping[str, Any],
    cards: Callable[[Mapping[str, Any]], Mapping[str, str]],
) -> Made:
    """Complete the folder of `records`, and let it take the place of `output_dir`.

    `facts` are further fields of the manifest. `cards` makes the texts of CARD and PAGE from the manifest.
    """
    folder = records.folder
    manifest = {
        "mftcoder": __version__,
        "fingerprint": fingerprint,
        "recipe": recipe.model_dump(mode="json", exclude_none=True, exclude={"num_proc"}),
        "inputs": [
            {"path": str(file.path), "bytes": file.size, "xxh3_128": file.digest}
            for task in sources
            for file in (*task.training, *task.validation)
        ],
        "files": records.facts(recipe),
        **facts,
        "notes": [f"{path}: is empty" for path in outcome.empty_files],
        **_counts(recipe, outcome),
    }
    write_json(folder / MANIFEST, manifest)
    for name, text in cards(manifest).items():
        write_text(folder / name, text)
    return Made(_replace(Path(recipe.output_dir).expanduser(), folder), manifest)


class RecordFiles:
    """The files of records in a new folder. Blocks are appended as they are finished, while the workers make the next ones.

    Each append is flushed to disk here, where there is time for it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, _RecordFile] = {}
        shutil.rmtree(folder, ignore_errors=True)

    def take(self, block: BlockFiles, is_last: bool) -> None:
        """Append what a block has dropped, and in the last stage what it has kept."""
        self._append(DROPPED, dropped_path(block.target))
        if is_last:
            self._append(_file_of(block.place.task, block.place.split), kept_path(block.target))

    def _append(self, name: str, part: Path) -> None:
        lines = part.read_bytes()
        if lines:
            file = self._files.setdefault(name, _RecordFile(self.folder / name))
            file.append(lines)

    def facts(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """For each file how many lines, how many bytes, and their checksum. A file without a record is not written."""
        names = [_file_of(task.name, split) for task in recipe.tasks for split in ("train", "validation")]
        return {name: self._files[name].facts() for name in [*names, DROPPED] if name in self._files}


def _file_of(task: str, split: str) -> str:
    return f"{task}/train.jsonl" if split == "train" else f"validation/{task}.jsonl"


class _RecordFile:
    """One of them, with count, size and checksum."""

    def __init__(self, path: Path):
        self.path = path
        self.digest = hashlib.sha256()
        self.records = self.bytes = 0

    def append(self, lines: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with names_in_errors(self.path), self.path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.digest.update(lines)
        self.records += lines.count(b"\n")
        self.bytes += len(lines)

    def facts(self) -> dict[str, Any]:
        return {"records": self.records, "bytes": self.bytes, "sha256": self.digest.hexdigest()}


def _counts(recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """What the manifest says of records: a list of steps with what each rule dropped, tasks, statistics, samples."""
    totals = [outcome.summed(stage) for stage in range(len(outcome.stages))]
    dropped: dict[str, dict[str, int]] = {name: {} for name in ("read", *recipe.step_names)}
    samples: dict[str, Any] = {}
    for total in totals:
        for (step, rule), count in sorted(total.dropped.items()):
            dropped[step][rule] = count
        samples |= {key: [shown for _, shown in found] for key, found in total.samples.items() if key != KEPT}
    read = totals[0].before.records + sum(dropped["read"].values())
    steps = []
    left = read
    for name, rules in dropped.items():
        left -= sum(rules.values())
        steps.append({"step": name, "dropped": rules, "left": left})
    samples[KEPT] = [shown for _, shown in totals[-1].samples.get(KEPT, [])]
    return {
        "read": read,
        "kept": left,
        "steps": steps,
        "tasks": {task.name: _task_counts(task.format, task.name, outcome) for task in recipe.tasks},
        "before": totals[0].before.as_json(),
        "after": totals[-1].after.as_json(),
        # Of the n-grams that records share with an exam the most frequent ones: boilerplate, if the records are unrelated.
        "grams": sorted(_counted(totals, "grams", "gram"), key=lambda row: (-row["records"], row["step"], row["gram"]))[
            :_GRAMS_LISTED
        ],
        "verdicts": sorted(
            _counted(totals, "verdicts", "verdict"), key=lambda row: (row["step"], -row["records"], row["verdict"])
        ),
        "samples": samples,
    }


def _counted(totals: Sequence[BlockReport], counter: str, what: str) -> Iterator[dict[str, Any]]:
    """A counter of the reports as rows: the step, what it has found, and in how many records."""
    for total in totals:
        for (step, found), count in getattr(total, counter).items():
            yield {"step": step, what: found, "records": count}


def _task_counts(record_format: str, name: str, outcome: Outcome) -> dict[str, Any]:
    reports: list[BlockReport] = [stage[name] for stage in outcome.reports]
    lost = sum(sum(report.dropped.values()) for report in reports)
    kept = reports[-1].after.records
    first, last = reports[0].before.as_json(), reports[-1].after.as_json()
    return {"format": record_format, "read": kept + lost, "kept": kept, "before": first, "after": last}


def _replace(target: Path, folder: Path) -> Path:
    """Rename `folder` to `target`; an older result goes away only then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name("replaced")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    return target
