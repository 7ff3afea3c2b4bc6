"""Check and pack a submission to the qwen-competition leaderboard: thirteen generations files of one model.

The number of problems of each task comes from catalogue.py, so checking needs no data.
"""

import json
import lzma
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mftcoder.benchmarks.answers.generations import list_problems
from mftcoder.benchmarks.catalogue import GROUPS, all_tasks
from mftcoder.jsonl import atomic_path

GROUP = "qwen-competition"
FOLDER_PREFIX = "generations_"
MAX_FILE_BYTES = 256 << 20

BASELINE: Mapping[str, float] = {
    "humanevalsynthesize-python": 0.2195, "humanevalsynthesize-java": 0.2256, "humanevalsynthesize-js": 0.1341,
    "humanevalsynthesize-cpp": 0.1280, "humanevalsynthesize-go": 0.1524, "humanevalsynthesize-rust": 0.0366,
    "humanevalfixtests-python": 0.0305, "humanevalfixtests-java": 0.0, "humanevalfixtests-js": 0.0122,
    "humanevalfixtests-cpp": 0.0183, "humanevalfixtests-go": 0.0122, "humanevalfixtests-rust": 0.0, "mbpp": 0.2440,
}  # fmt: skip
"""The published scores of Qwen-1.8B; their mean is 0.0933."""


@dataclass
class Review:
    """What the check of a submission found."""

    model: str = ""
    problems: list[str] = field(default_factory=list)  # reasons why the leaderboard would reject it
    warnings: list[str] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)  # file name -> content, of the thirteen files


def wanted_files(model: str) -> dict[str, str]:
    """File name -> task, of the thirteen files."""
    return {f"generations_{task}_{model}.json": task for task in GROUPS[GROUP]}


def model_of_folder(name: str) -> str | None:
    """The model in `generations_{model}`; None for another name."""
    match = re.fullmatch(rf"{FOLDER_PREFIX}([A-Za-z0-9][A-Za-z0-9._-]*)", name)
    return match.group(1) if match else None


def review_folder(folder: Path) -> Review:
    """Check a folder and every file in it."""
    review = _named(folder.resolve().name)
    if not review.model:
        return review
    for path in sorted(folder.iterdir()):
        if path.name not in wanted_files(review.model):
            if path.name.startswith(FOLDER_PREFIX):
                review.problems.append(f"{path.name}: is not one of the {len(wanted_files(review.model))} files")
        elif path.is_file():
            review.contents[path.name] = path.read_bytes()
        else:
            review.problems.append(f"{path.name}: is not a file")
    _check_contents(review)
    _check_settings(review, folder)
    return review


_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, UnicodeDecodeError, EOFError, OSError, RuntimeError)
"""What reading a zip may raise."""


def review_zip(path: Path) -> Review:
    """Check a zip without unpacking it."""
    review = Review()
    try:
        with zipfile.ZipFile(path) as archive:
            _review_archive(review, path, archive)
    except _BROKEN as error:
        review.problems.append(f"{path.name}: not a zip that can be read: {error}")
    return review


def _review_archive(review: Review, path: Path, archive: zipfile.ZipFile) -> None:
    names = [PurePosixPath(entry.filename) for entry in archive.infolist() if not entry.is_dir()]
    tops = [name.parts[0] for name in names if len(name.parts) == 2]
    top = max(tops, key=lambda name: (name.startswith(FOLDER_PREFIX), tops.count(name)), default="")
    strays = [str(name) for name in names if len(name.parts) != 2 or name.parts[0] != top or ".." in name.parts]
    if strays or not names:
        what = f"these files are outside of it: {_shortened(strays)}" if names else "it is empty"
        review.problems.append(f"{path.name}: must contain one folder {top or 'generations_MODEL'}; {what}")
        return
    named = _named(top)
    review.model, review.problems = named.model, named.problems
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename).name
        if entry.is_dir():
            continue
        if name not in wanted_files(review.model):
            review.problems.append(f"{entry.filename}: is not one of the {len(wanted_files(review.model))} files")
        elif name in review.contents:
            review.problems.append(f"{entry.filename}: appears twice")
        elif entry.file_size > MAX_FILE_BYTES:
            review.problems.append(f"{entry.filename}: is larger than {MAX_FILE_BYTES >> 20} MiB")
        else:
            review.contents[name] = archive.read(entry)
    _check_contents(review)


def _named(folder: str) -> Review:
    model = model_of_folder(folder)
    if model is None:
        rule = (
            "the folder must be named generations_MODEL; MODEL may have letters, digits, dots, dashes and underscores"
        )
        return Review(problems=[f"{folder}: {rule}"])
    return Review(model)


def _check_contents(review: Review) -> None:
    for name, task in wanted_files(review.model).items():
        if name in review.contents:
            _check_file(review, name, task)
        elif not any(name in problem for problem in review.problems):
            review.problems.append(f"{name}: is missing")


def _check_file(review: Review, name: str, task: str) -> None:
    content = review.contents[name]
    try:
        answers = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        review.problems.append(f"{name}: not UTF-8: {error}")
        return
    except (ValueError, RecursionError) as error:
        review.problems.append(f"{name}: not valid JSON: {error}")
        return
    found = list_problems(answers, all_tasks()[task].problems)
    if not found:
        found = [
            f"problem {number}: {len(samples)} samples; exactly 1 is allowed"
            for number, samples in enumerate(answers)
            if len(samples) != 1
        ]
    review.problems += [f"{name}: {problem}" for problem in found[:3]]
    if len(found) > 3:
        review.problems.append(f"{name}: ... and {len(found) - 3} more")
    if not found:
        review.warnings += [f"{name}: {odd}" for odd in _odd_answers([samples[0] for samples in answers])]


def _odd_answers(texts: list[str]) -> list[str]:
    empty = sum(not text.strip() for text in texts)
    text, count = Counter(text for text in texts if text.strip()).most_common(1)[0] if empty < len(texts) else ("", 0)
    odd = [f"{empty} of {len(texts)} answers are empty"] if empty else []
    halves = [number for number, text in enumerate(texts) if any("\ud800" <= letter <= "\udfff" for letter in text)]
    if halves:
        odd.append(
            f"problem {halves[0]}: the answer contains half a character (a surrogate), so it cannot be a source file"
        )
    return odd + ([f"{count} answers are identical: {text[:40]!r}"] if count > 1 else [])


def _check_settings(review: Review, folder: Path) -> None:
    """Check the settings that `mft generate` writes beside each file: decoding must be greedy."""
    for name in review.contents:
        path = folder / name.replace("generations_", "settings_", 1)
        if not path.is_file():
            review.warnings.append(f"{name}: {path.name} is missing, so greedy decoding cannot be checked")
            continue
        temperature = _temperature(path)
        if temperature != 0:
            review.problems.append(
                f"{path.name}: temperature is {temperature}; the contest requires greedy decoding (0)"
            )


def _temperature(path: Path) -> Any:
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "unreadable"
    if not isinstance(settings, dict):
        return "unreadable"
    sampling = settings.get("sampling")
    return settings.get("temperature", sampling.get("temperature") if isinstance(sampling, dict) else "not recorded")


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)} files)" if len(names) > 4 else "")


def pack(review: Review, path: Path) -> None:
    """Write the zip: `generations_{model}/` with the thirteen files. The same answers give the same bytes."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(review.contents):
            entry = zipfile.ZipInfo(f"{FOLDER_PREFIX}{review.model}/{name}", (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, review.contents[name])
