"""Make chat examples of tasks from a folder of code in six languages, split by module. The same folder and seed give the same examples.

Each task has training and validation records (`chat_rounds`). Functions that can be run for an exam are collected, and everything that is
left out is counted. A module is in training, in validation or in the exam, never in two of them. Equal functions are kept once. No mined
code is run here; `exam.py` does that.
"""

import ast
import hashlib
import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mftcoder.curation.mining import tasks as mining_tasks
from mftcoder.curation.mining.functions import MAX_SOURCE_CHARS, MinedFunction, mine_functions
from mftcoder.curation.mining.languages import functions as tree_functions
from mftcoder.curation.mining.languages import tests as tree_tests
from mftcoder.curation.mining.languages.grammars import LANGUAGES
from mftcoder.curation.mining.languages.trees import function_tree
from mftcoder.curation.mining.repository.context import Context
from mftcoder.curation.mining.repository.licences import Licences, is_allowed
from mftcoder.curation.mining.sources import SourceModule, is_test, language_of, read_modules, source_files
from mftcoder.curation.mining.standalone import StandaloneFunction, standalone_functions
from mftcoder.curation.mining.tasks import (
    CONTEXT_TASKS,
    DEFAULT_TASKS,
    TASKS,
    TRANSLATE,
    Example,
    UnfitError,
    translate,
    with_context,
)
from mftcoder.curation.mining.tests import TestedFunction, index_by_stem, subjects, tested_functions
from mftcoder.curation.syntax import parse
from mftcoder.errors import DataError

Record = dict[str, Any]
Side = Literal["train", "valid", "exam"]
MIN_NAME_CHARS = 4  # a name like `get` or `add` does not show that two functions do the same
_FOLDER_FILES = frozenset({"lib", "mod", "index", "main", "init"})
"""Files that say what their folder is, not what they are; the folder's name is taken for theirs."""


@dataclass(frozen=True)
class MiningOptions:
    """What is mined, how much of it, and how it is split."""

    tasks: tuple[str, ...] = DEFAULT_TASKS
    max_per_task: int | None = None  # training examples; those with the smallest hashes are kept
    valid_share: float = 0.1  # of the modules
    exam_share: float = 0.0  # of the modules; above 0, functions that can be run are collected
    max_chars: int = MAX_SOURCE_CHARS  # of a function
    seed: int = 42
    languages: tuple[str, ...] = tuple(LANGUAGES)
    licenses: tuple[str, ...] = ()  # SPDX names of those that are taken; none: all
    context: bool = False  # whether questions show what the function uses of its repository


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
    languages: Counter[str]  # functions of each
    licenses: Counter[str]  # functions under each
    standalone: list[StandaloneFunction]  # in the order of their hashes; for an exam

    @classmethod
    def nothing(cls) -> "Mined":
        """No records, for what is mined elsewhere to be added."""
        return cls({}, Counter(), 0, 0, Counter(), Counter(), [])


def mine(folder: Path, options: MiningOptions, on_file: Callable[[int, int], None] = lambda done, total: None) -> Mined:
    """Mine `folder`. `on_file(done, total)` is called after each file. DataError if there is no file of the languages."""
    skips: Counter[str] = Counter()
    files = source_files(folder, options.languages, skips)
    _need_grammars({language_of(file.name) for file in files})
    if not files:
        suffixes = ", ".join(suffix for name in options.languages for suffix in LANGUAGES[name].suffixes)
        raise DataError(f"{folder}: no file of {', '.join(options.languages)} in it or below it ({suffixes})")
    code = [file for file in files if not is_test(_relative(file, folder))]
    functions: list[MinedFunction] = []
    standalone: list[StandaloneFunction] = []
    declared: set[tuple[str, str]] = set()
    context = Context()
    inline: list[Path] = []  # code files that hold tests too
    read = partial(_read, folder, Licences(folder), options)
    for done, (file, module) in enumerate(zip(code, read(code, skips), strict=True), start=1):
        found = list(functions_of_module(module, skips, options.max_chars)) if module else []
        declared.update(_declared(module) if module else ())
        if module and options.context:
            context.add(module)
        functions += found
        if module and module.language == "python" and options.exam_share:
            standalone += standalone_functions(module, found, skips, options.seed)
        if module and module.language == "rust" and "#[test]" in module.text:
            inline.append(file)
        on_file(done, len(files))
    functions = _without_repeats(functions, skips)
    tests: list[TestedFunction] = []
    if "write_test" in options.tasks:
        others = [file for file in files if file not in set(code)]
        tests = _tests(read, folder, others, inline, functions, declared, skips)
        on_file(len(files), len(files))
    tasks = {name: _mine_task(name, functions, tests, context, options, skips) for name in options.tasks}
    modules = {function.module for function in functions}
    languages = Counter(function.language for function in functions)
    licenses = Counter(function.license for function in functions)
    return Mined(
        tasks, +skips, len(modules), len(functions), languages, licenses, _in_order(standalone, functions, options)
    )


def _need_grammars(languages: set[str]) -> None:
    """DataError, with what can be done, if a language cannot be parsed here."""
    for language in sorted(languages - {"python"}):
        try:
            parse("", language)
        except DataError as error:
            raise DataError(f"{error} Or mine the Python files only: --languages python.") from error


def functions_of_module(module: SourceModule, skips: Counter[str], longest: int) -> Iterator[MinedFunction]:
    """The functions of a module in any language that make examples."""
    find = mine_functions if module.language == "python" else tree_functions.mine_functions
    return find(module, skips, longest)


def _declared(module: SourceModule) -> Iterator[tuple[str, str]]:
    """`(language, name)` of all functions of a module that is not Python, also of those that make no example."""
    if module.language != "python":
        for function in tree_functions.found_functions(module.tree.root_node, module.language):
            yield module.language, function.name


def _read(
    folder: Path, licences: Licences, options: MiningOptions, files: list[Path], skips: Counter[str]
) -> Iterator[SourceModule | None]:
    """One item for each file; None for one that cannot be read or whose licence is not asked for, which is counted."""
    for module in read_modules(folder, files, skips, licences.of):
        if module and not is_wanted(module.license, options, skips):
            yield None
        else:
            yield module


def is_wanted(licence: str, options: MiningOptions, skips: Counter[str]) -> bool:
    """Whether files under a licence are taken. Others are counted."""
    wanted = not options.licenses or is_allowed(licence, options.licenses)
    if not wanted:
        skips[f"file: not under a licence asked for ({licence})"] += 1
    return wanted


def _tests(
    read: Callable[[list[Path], Counter[str]], Iterator[SourceModule | None]],
    folder: Path,
    files: list[Path],
    inline: list[Path],
    functions: list[MinedFunction],
    declared: set[tuple[str, str]],
    skips: Counter[str],
) -> list[TestedFunction]:
    """The tests of functions in test files, and in code files that hold tests too."""
    index, candidates = index_by_stem(functions), tree_tests.Candidates(functions, declared)
    python = [file for file in files if language_of(file.name) == "python"]
    about_them = [file for file in python if subjects(_relative(file, folder), index)]
    skips["file: a test of no function mined here"] += len(python) - len(about_them)
    tests: list[TestedFunction] = []
    for module in read(about_them, skips):
        tests += tested_functions(module, index) if module else ()
    others = [file for file in files if language_of(file.name) != "python"]
    for module in read(others, skips):
        tests += (found := list(tree_tests.tested_functions(module, candidates)) if module else [])
        skips["file: a test of no function mined here"] += bool(module and not found)
    for module in read(inline, Counter()):
        tests += tree_tests.tested_functions(module, candidates) if module else ()
    return tests


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
        key = program_of(function)
        if key in seen:
            skips["function: repeated"] += 1
        else:
            seen[key] = function
    return list(seen.values())


def program_of(function: MinedFunction) -> str:
    """What is equal for functions that differ in docstring, comments and layout only."""
    code = function.header + function.body
    if function.language == "python":
        return ast.dump(ast.parse(code))
    tree = function_tree(code, function.language, function.owner)
    return f"{function.language}: {tree.tokens if tree else code}"


@dataclass(frozen=True)
class Candidate:
    """An example that can be made."""

    id: str
    function: MinedFunction
    make: Callable[[], Example]


def _mine_task(
    name: str,
    functions: list[MinedFunction],
    tests: list[TestedFunction],
    context: Context,
    options: MiningOptions,
    skips: Counter[str],
) -> MinedTask:
    if name == TRANSLATE:
        return choose(name, _of_pairs(functions, options, skips), options, skips)
    candidates = [*_of_functions(name, functions, context, options), *_of_tests(name, tests, options, skips)]
    return choose(name, candidates, options, skips)


def choose(name: str, candidates: Iterable[Candidate], options: MiningOptions, skips: Counter[str]) -> MinedTask:
    """A task's examples, in the order of their hashes. Examples over the limit are not made."""
    mined, most = MinedTask(), options.max_per_task
    for candidate in sorted(candidates, key=lambda candidate: _fraction(f"{options.seed}:{candidate.id}")):
        kind = side_of(candidate.function.module, options)
        if kind == "exam":
            skips[f"{name}: held out for the exam"] += 1
            continue
        side, limit = (mined.valid, valid_limit(options)) if kind == "valid" else (mined.train, most)
        if limit is not None and len(side) >= limit:
            skips[f"{name}: over the limit"] += 1
            continue
        try:
            side.append(chat_record(name, candidate.id, candidate.function, candidate.make()))
        except UnfitError as unfit:
            skips[f"{name}: {unfit}"] += 1
    return mined


def valid_limit(options: MiningOptions) -> int | None:
    """The limit of validation examples: in proportion to the limit of training examples."""
    share, rest = options.valid_share, 1 - options.valid_share - options.exam_share
    return None if options.max_per_task is None else max(1, round(options.max_per_task * share / rest))


def _of_functions(
    name: str, functions: Iterable[MinedFunction], context: Context, options: MiningOptions
) -> Iterator[Candidate]:
    for function in functions:
        make = partial(_example, name, function, context, options.seed)
        yield Candidate(f"{name}/{function.origin}", function, make)


def _example(name: str, function: MinedFunction, context: Context, seed: int) -> Example:
    """The choices made for a function depend only on the function, the task and the seed."""
    made = TASKS[name](function, random.Random(f"{seed}:{name}:{function.origin}"))
    return with_context(made, context.of(function), function.language) if name in CONTEXT_TASKS else made


def _of_pairs(functions: Iterable[MinedFunction], options: MiningOptions, skips: Counter[str]) -> Iterator[Candidate]:
    """One example for each function that is there in two languages, in a direction by its hash."""
    for pair in pairs(functions):
        name = f"{TRANSLATE}/{pair[0].origin}#{pair[1].origin}"
        if len({side_of(function.module, options) for function in pair}) > 1:
            skips["translate: the two languages are on different sides of the split"] += 1
            continue
        known, into = pair if _fraction(f"{options.seed}:direction:{name}") < 0.5 else pair[::-1]
        licence = " AND ".join(sorted({known.license, into.license}))
        yield Candidate(name, replace(into, license=licence), partial(translate, known, into))


def pairs(functions: Iterable[MinedFunction]) -> Iterator[tuple[MinedFunction, MinedFunction]]:
    """Each two functions that have one name in two languages, in files of one name: `clampTo` in `Ranges.java`, `clamp_to` in `ranges.go`.

    A name that a file has twice, in overloads or classes, makes no pair.
    """
    found: dict[tuple[str, str], dict[str, list[MinedFunction]]] = defaultdict(lambda: defaultdict(list))
    for function in functions:
        name = _plain(function.name)
        if len(name) >= MIN_NAME_CHARS:
            found[_stem(function.module), name][function.language].append(function)
    for languages in found.values():
        single = sorted((several[0] for several in languages.values() if len(several) == 1), key=lambda f: f.origin)
        yield from itertools.combinations(single, 2)


def _stem(path: str) -> str:
    *folders, name = path.split("/")
    stem = _plain(name.rsplit(".", 1)[0])
    return _plain(folders[-1]) if stem in _FOLDER_FILES and folders else stem


def _plain(name: str) -> str:
    """`clampTo`, `ClampTo` and `clamp_to` are `clampto`."""
    return re.sub(r"[\W_]", "", name).lower()


def _of_tests(
    name: str, tests: Iterable[TestedFunction], options: MiningOptions, skips: Counter[str]
) -> Iterator[Candidate]:
    """One example for each test. A test file belongs to the side of the split of its first function."""
    sides: dict[str, Side] = {}
    for tested in tests if name == "write_test" else ():
        side = side_of(tested.function.module, options)
        if sides.setdefault(tested.test_module, side) != side:
            skips["write_test: its test file is on the other side of the split"] += 1
            continue
        make = partial(mining_tasks.write_test, tested.function, tested.test)
        yield Candidate(f"write_test/{tested.function.origin}#{tested.origin}", tested.function, make)


def chat_record(task: str, name: str, function: MinedFunction, example: Example) -> Record:
    """An example as a training record."""
    rounds = [{"role": "human", "content": example.prompt}, {"role": "bot", "content": example.answer}]
    about = {"source": function.origin, "language": function.language, "license": function.license}
    return {"id": name, "data_name": task, **about, **example.fields, "chat_rounds": rounds}
