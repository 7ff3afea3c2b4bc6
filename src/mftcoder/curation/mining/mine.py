"""Make chat examples of five tasks from a folder of Python code, split by module. The same folder and seed give the same examples.

Each task has training and validation records (`chat_rounds`). Functions that can be run for an exam are collected, and everything that is
left out is counted. A module is in training, in validation or in the exam, never in two of them. Equal functions are kept once. No mined
code is run here; `exam.py` does that.
"""

import ast
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mftcoder.curation.mining import tasks as mining_tasks
from mftcoder.curation.mining.functions import MAX_SOURCE_CHARS, MinedFunction, mine_functions
from mftcoder.curation.mining.sources import is_test, python_files, read_modules
from mftcoder.curation.mining.standalone import StandaloneFunction, standalone_functions
from mftcoder.curation.mining.tasks import TASKS, Example, UnfitError
from mftcoder.curation.mining.tests import TestedFunction, index_by_stem, subjects, tested_functions
from mftcoder.errors import DataError

Record = dict[str, Any]
Side = Literal["train", "valid", "exam"]


@dataclass(frozen=True)
class MiningOptions:
    """What is mined, how much of it, and how it is split."""

    tasks: tuple[str, ...] = tuple(TASKS)
    max_per_task: int | None = None  # training examples; those with the smallest hashes are kept
    valid_share: float = 0.1  # of the modules
    exam_share: float = 0.0  # of the modules; above 0, functions that can be run are collected
    max_chars: int = MAX_SOURCE_CHARS  # of a function
    seed: int = 42


@dataclass
class MinedTask:
    """The records of one task."""

    train: list[Record] = field(default_factory=list)
    valid: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Mined:
    """All records by task, and counts of what was left out: `skips["function: too long"]`."""

    tasks: dict[str, MinedTask]
    skips: Counter[str]
    modules: int
    functions: int
    standalone: list[StandaloneFunction]  # in the order of their hashes; for an exam


def mine(folder: Path, options: MiningOptions, on_file: Callable[[int, int], None] = lambda done, total: None) -> Mined:
    """Mine `folder`. `on_file(done, total)` is called after each file. DataError if there is no Python file."""
    files = python_files(folder)
    if not files:
        raise DataError(f"{folder}: no .py file in it or below it")
    skips: Counter[str] = Counter()
    code = [file for file in files if not is_test(_relative(file, folder))]
    functions: list[MinedFunction] = []
    standalone: list[StandaloneFunction] = []
    for done, module in enumerate(read_modules(folder, code, skips), start=1):
        found = list(mine_functions(module, skips, options.max_chars)) if module else []
        functions += found
        if module and options.exam_share:
            standalone += standalone_functions(module, found, skips, options.seed)
        on_file(done, len(files))
    functions = _without_repeats(functions, skips)
    index = index_by_stem(functions) if "write_test" in options.tasks else {}
    about_them = [file for file in files if file not in set(code) and subjects(_relative(file, folder), index)]
    tests: list[TestedFunction] = []
    for done, module in enumerate(read_modules(folder, about_them, skips), start=len(files) - len(about_them) + 1):
        tests += tested_functions(module, index) if module else ()
        on_file(done, len(files))
    skips["file: a test of no function mined here"] += len(files) - len(code) - len(about_them)
    tasks = {name: _mine_task(name, functions, tests, options, skips) for name in options.tasks}
    modules = {function.module for function in functions}
    return Mined(tasks, +skips, len(modules), len(functions), _in_order(standalone, functions, options))


def _in_order(
    standalone: list[StandaloneFunction], kept: list[MinedFunction], options: MiningOptions
) -> list[StandaloneFunction]:
    """The items whose function was kept, in the order of their hashes."""
    origins = {function.origin for function in kept}
    chosen = [item for item in standalone if item.function.origin in origins]
    return sorted(chosen, key=lambda item: _fraction(f"{options.seed}:{item.function.origin}"))


def _relative(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def side_of(module: str, options: MiningOptions) -> Side:
    """The part of the split that a module belongs to. It depends on a hash of its path only, not on other modules."""
    place = _fraction(f"{options.seed}:{module}")
    if place < options.valid_share:
        return "valid"
    return "exam" if place < options.valid_share + options.exam_share else "train"


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def _without_repeats(functions: Iterable[MinedFunction], skips: Counter[str]) -> list[MinedFunction]:
    """The first of the functions whose code is equal except for docstring and layout. A copy must not be on both sides of the split."""
    seen: dict[str, MinedFunction] = {}
    for function in functions:
        key = ast.dump(ast.parse(function.header + function.body))
        if key in seen:
            skips["function: repeated"] += 1
        else:
            seen[key] = function
    return list(seen.values())


@dataclass(frozen=True)
class _Candidate:
    """An example that can be made."""

    id: str
    origin: str
    make: Callable[[], Example]


def _mine_task(
    name: str,
    functions: list[MinedFunction],
    tests: list[TestedFunction],
    options: MiningOptions,
    skips: Counter[str],
) -> MinedTask:
    """The task's examples, in the order of their hashes. Examples over the limit are not made."""
    candidates = [*_of_functions(name, functions, options), *_of_tests(name, tests, options, skips)]
    mined, most = MinedTask(), options.max_per_task
    for candidate in sorted(candidates, key=lambda candidate: _fraction(f"{options.seed}:{candidate.id}")):
        kind = side_of(candidate.origin.rsplit(":", 1)[0], options)
        if kind == "exam":
            skips[f"{name}: held out for the exam"] += 1
            continue
        side, limit = (mined.valid, valid_limit(options)) if kind == "valid" else (mined.train, most)
        if limit is not None and len(side) >= limit:
            skips[f"{name}: over the limit"] += 1
            continue
        try:
            side.append(chat_record(name, candidate.id, candidate.origin, candidate.make()))
        except UnfitError as unfit:
            skips[f"{name}: {unfit}"] += 1
    return mined


def valid_limit(options: MiningOptions) -> int | None:
    """The limit of validation examples: in proportion to the limit of training examples."""
    share, rest = options.valid_share, 1 - options.valid_share - options.exam_share
    return None if options.max_per_task is None else max(1, round(options.max_per_task * share / rest))


def _of_functions(name: str, functions: Iterable[MinedFunction], options: MiningOptions) -> Iterator[_Candidate]:
    for function in functions:
        make = partial(_example, name, function, options.seed)
        yield _Candidate(f"{name}/{function.origin}", function.origin, make)


def _example(name: str, function: MinedFunction, seed: int) -> Example:
    """The choices made for a function depend only on the function, the task and the seed."""
    return TASKS[name](function, random.Random(f"{seed}:{name}:{function.origin}"))


def _of_tests(
    name: str, tests: Iterable[TestedFunction], options: MiningOptions, skips: Counter[str]
) -> Iterator[_Candidate]:
    """One example for each test. A test file belongs to the side of the split of its first function."""
    sides: dict[str, Side] = {}
    for tested in tests if name == "write_test" else ():
        side = side_of(tested.function.module, options)
        if sides.setdefault(tested.test_module, side) != side:
            skips["write_test: its test file is on the other side of the split"] += 1
            continue
        make = partial(mining_tasks.write_test, tested.function, tested.test)
        yield _Candidate(f"write_test/{tested.function.origin}#{tested.origin}", tested.function.origin, make)


def chat_record(task: str, name: str, origin: str, example: Example) -> Record:
    """An example as a training record."""
    rounds = [{"role": "human", "content": example.prompt}, {"role": "bot", "content": example.answer}]
    return {"id": name, "data_name": task, "source": origin, "chat_rounds": rounds}
