"""A folder of Python code -> chat examples of five tasks, split by module, the same for the same folder and seed.

Goes in: a folder and options. Comes out: per task the training and validation records (`chat_rounds`), and a count of everything
that was passed over. A module is in training or in validation, never in both, and equal functions are kept once. Runs no mined code.
"""

import ast
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mftcoder.curation import mining_tasks
from mftcoder.curation.mining_functions import MinedFunction, mine_functions
from mftcoder.curation.mining_sources import SourceModule, python_files, read_modules
from mftcoder.curation.mining_tasks import TASKS, Example, UnfitError
from mftcoder.curation.mining_tests import TestedFunction, index_by_stem, tested_functions
from mftcoder.errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True)
class MiningOptions:
    """What to mine, how much, and how to split it."""

    tasks: tuple[str, ...] = tuple(TASKS)
    max_per_task: int | None = None  # training examples; those with the smallest hash are kept
    valid_share: float = 0.1  # of the modules
    seed: int = 42


@dataclass
class MinedTask:
    """The records of one task."""

    train: list[Record] = field(default_factory=list)
    valid: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Mined:
    """All records by task, and what was passed over: `skips["function: too long"]`."""

    tasks: dict[str, MinedTask]
    skips: Counter[str]
    modules: int
    functions: int


def mine(folder: Path, options: MiningOptions, on_file: Callable[[int, int], None] = lambda done, total: None) -> Mined:
    """Mine `folder`; `on_file(done, total)` is called after each file. DataError if there is no Python file."""
    files = python_files(folder)
    if not files:
        raise DataError(f"{folder}: no .py file in it or below it")
    skips: Counter[str] = Counter()
    functions: list[MinedFunction] = []
    test_modules: list[SourceModule] = []
    for done, module in enumerate(read_modules(folder, files, skips), start=1):
        if module is not None and module.is_test:
            test_modules.append(module)
        elif module is not None:
            functions += mine_functions(module, skips)
        on_file(done, len(files))
    functions = _without_repeats(functions, skips)
    tests = list(_tests_of(test_modules, functions))
    tasks = {name: _mine_task(name, functions, tests, options, skips) for name in options.tasks}
    return Mined(tasks, skips, len({function.module for function in functions}), len(functions))


def is_validation(module: str, options: MiningOptions) -> bool:
    """Whether a module's examples are held out: by a hash of its path, so that other modules don't matter."""
    return _fraction(f"{options.seed}:{module}") < options.valid_share


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def _without_repeats(functions: Iterable[MinedFunction], skips: Counter[str]) -> list[MinedFunction]:
    """The first of functions whose code is equal, docstring and layout aside; a copy may not straddle the split."""
    seen: dict[str, MinedFunction] = {}
    for function in functions:
        key = ast.dump(ast.parse(function.header + function.body))
        if key in seen:
            skips["function: repeated"] += 1
        else:
            seen[key] = function
    return list(seen.values())


def _tests_of(modules: Iterable[SourceModule], functions: Iterable[MinedFunction]) -> Iterator[TestedFunction]:
    index = index_by_stem(functions)
    for module in modules:
        yield from tested_functions(module, index)


def _mine_task(
    name: str,
    functions: list[MinedFunction],
    tests: list[TestedFunction],
    options: MiningOptions,
    skips: Counter[str],
) -> MinedTask:
    mined = MinedTask()
    records = _records(name, functions, options, skips)
    if name == "write_test":
        records = [*records, *_test_records(tests, options, skips)]
    for record in sorted(records, key=lambda record: _fraction(f"{options.seed}:{record['id']}")):
        held_out = is_validation(record["source"].rsplit(":", 1)[0], options)
        (mined.valid if held_out else mined.train).append(record)
    kept = MinedTask(mined.train[: options.max_per_task], mined.valid[: _valid_limit(options)])
    over = len(mined.train) + len(mined.valid) - len(kept.train) - len(kept.valid)
    if over:
        skips[f"{name}: over the limit"] += over
    return kept


def _valid_limit(options: MiningOptions) -> int | None:
    """With a limit on training, validation keeps its share of it."""
    share = options.valid_share
    return None if options.max_per_task is None else max(1, round(options.max_per_task * share / (1 - share)))


def _records(
    name: str, functions: Iterable[MinedFunction], options: MiningOptions, skips: Counter[str]
) -> list[Record]:
    records = []
    for function in functions:
        rng = random.Random(f"{options.seed}:{name}:{function.origin}")
        try:
            records.append(_record(name, function.origin, TASKS[name](function, rng)))
        except UnfitError as unfit:
            skips[f"{name}: {unfit}"] += 1
    return records


def _test_records(tests: Iterable[TestedFunction], options: MiningOptions, skips: Counter[str]) -> list[Record]:
    """One example a test; a test file serves the side of the split that its first function is on."""
    sides: dict[str, bool] = {}
    records = []
    for tested in tests:
        side = is_validation(tested.function.module, options)
        if sides.setdefault(tested.test_module, side) != side:
            skips["write_test: its test file is on the other side of the split"] += 1
            continue
        try:
            example = mining_tasks.write_test(tested.function, tested.test)
            records.append(_record("write_test", tested.function.origin, example, test=tested.origin))
        except UnfitError as unfit:
            skips[f"write_test: {unfit}"] += 1
    return records


def _record(task: str, origin: str, example: Example, test: str = "") -> Record:
    return {
        "id": f"{task}/{origin}{f'#{test}' if test else ''}",
        "data_name": task,
        "source": origin,
        "chat_rounds": [{"role": "human", "content": example.prompt}, {"role": "bot", "content": example.answer}],
    }
