"""Repairs that people made: functions before and after the commits of a git repository that fix something.

Which commits these are is told by their messages, by the rules below.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from mftcoder.curation.mining.functions import MinedFunction
from mftcoder.curation.mining.mine import (
    Candidate,
    MinedTask,
    MiningOptions,
    choose,
    functions_of_module,
    is_wanted,
    program_of,
)
from mftcoder.curation.mining.repository.git import Change, Commit, GitRepository
from mftcoder.curation.mining.repository.licences import licence_in_header, licence_of_text
from mftcoder.curation.mining.sources import MAX_FILE_BYTES, READ_ERRORS, UNKNOWN, is_test, language_of, read_source
from mftcoder.curation.mining.tasks import repair_as_committed

HISTORY_TASK = "repair_history"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING", "LICENSE-MIT", "LICENSE-APACHE")
MAX_FILES, MAX_FUNCTIONS = 30, 3  # that a commit may change
_FIXES = re.compile(
    r"\b(fix(e[sd]|ing)?|bug(s|fix(es)?)?|repair(s|ed)?|correct(s|ed)?|mend(s|ed)?|resolve[sd]?|regressions?|crash(es|ed)?|"
    r"wrong(ly)?|incorrect(ly)?|off[- ]by[- ]one|overflows?|deadlocks?|data race|race condition|(memory )?leaks?|segfaults?|"
    r"null pointer|infinite loop|broken)\b",
    re.IGNORECASE,
)
_REFERS = re.compile(r"^(fix(e[sd])?|close[sd]?|resolve[sd]?):?\s+(#\d+|[\w./-]+#\d+|[0-9a-f]{7,40}\b)", re.I | re.M)
_NO_FIX = re.compile(
    r"^(revert|merge|bump|release)\b|\b(typos?|spelling|grammar|lint(er|ing)?|whitespace|formatting|indentation|docs?|"
    r"documentation|comments?|readme|changelog|copyright|warnings?|ci)\b",
    re.IGNORECASE,
)


def is_fix(commit: Commit, pattern: re.Pattern[str] | None = None) -> bool:
    """Whether a commit's message says that it mends a program.

    The subject names a fault or a fix, or a line of the body refers to one (`Fixes #12`). A subject about documentation, layout,
    warnings or releases, or one that reverts another commit, does not count. A `pattern` searched for in the whole message
    takes the place of these rules.
    """
    if pattern:
        return bool(pattern.search(f"{commit.subject}\n{commit.body}"))
    if _NO_FIX.search(commit.subject):
        return False
    return bool(_FIXES.search(commit.subject) or _REFERS.search(commit.body))


def mine_history(
    folder: Path,
    options: MiningOptions,
    skips: Counter[str],
    pattern: re.Pattern[str] | None = None,
    on_commit: Callable[[int, int], None] = lambda done, total: None,
) -> MinedTask:
    """The repairs of a repository's history. `on_commit(done, total)` is called after each commit. DataError if it is no repository.

    Memory holds one commit's files, and the functions of the repairs.
    """
    candidates: list[Candidate] = []
    seen: set[bytes] = set()
    with GitRepository(folder) as repository:
        total, licence = repository.count(), _licence(repository)
        for done, commit in enumerate(repository.commits(), start=1):
            if commit is None:
                skips["commit: cannot be read"] += 1
            elif not is_fix(commit, pattern):
                skips["commit: its message names no fix"] += 1
            else:
                repairs = _repairs(repository, commit, licence, options, skips)
                candidates += [
                    _candidate(commit, *repair, options) for repair in repairs if _is_new(repair, seen, skips)
                ]
            on_commit(done, total)
    return choose(HISTORY_TASK, candidates, options, skips)


def _licence(repository: GitRepository) -> str:
    """The licence of the files that name none: what the licence files at the top of HEAD say."""
    texts = (repository.content(f"HEAD:{name}", MAX_FILE_BYTES) for name in LICENCE_FILES)
    found = {licence_of_text(text.decode(errors="replace")) for text in texts if text} - {UNKNOWN}
    return " AND ".join(sorted(found)) or UNKNOWN


Repair = tuple[MinedFunction, MinedFunction]  # before and after


def _candidate(commit: Commit, before: MinedFunction, after: MinedFunction, options: MiningOptions) -> Candidate:
    name = f"{HISTORY_TASK}/{commit.id[:12]}/{after.origin}"
    rng = random.Random(f"{options.seed}:{name}")
    return Candidate(name, after, partial(repair_as_committed, after, before.source, commit.subject, commit.id, rng))


def _repairs(
    repository: GitRepository, commit: Commit, licence: str, options: MiningOptions, skips: Counter[str]
) -> list[Repair]:
    """The functions that a commit changed; none if it changed many, because then a part of it is something else."""
    changes = repository.changes(commit, MAX_FILES)
    if changes is None:
        skips[f"commit: changes more than {MAX_FILES} files"] += 1
        return []
    found = [repair for change in changes for repair in _of_change(repository, change, licence, options, skips)]
    if len(found) > MAX_FUNCTIONS:
        skips[f"commit: changes more than {MAX_FUNCTIONS} functions"] += 1
        return []
    if not found:
        skips["commit: changes no function that makes an example"] += 1
    return found


def _of_change(
    repository: GitRepository, change: Change, licence: str, options: MiningOptions, skips: Counter[str]
) -> Iterator[Repair]:
    """The functions of a file that are there before and after, with different programs."""
    language = language_of(change.new_path)
    if language not in options.languages or language_of(change.old_path) != language or is_test(change.new_path):
        return
    sides = []
    for path, oid in ((change.old_path, change.before), (change.new_path, change.after)):
        data = repository.content(oid, MAX_FILE_BYTES)
        try:
            module = read_source(path, data) if data is not None else None
        except READ_ERRORS:
            module = None
        if module is None:
            skips["history: a file that cannot be read or parsed"] += 1
            return
        stated = licence_in_header(module.text)
        module = replace(module, license=licence if stated == UNKNOWN else stated)
        if not is_wanted(module.license, options, skips):
            return
        sides.append(_by_name(functions_of_module(module, Counter(), options.max_chars)))
    before, after = sides
    for name in (name for name in after if name in before):
        if program_of(before[name]) == program_of(after[name]):
            continue
        if "".join(before[name].header.split()) != "".join(after[name].header.split()):
            skips["history: a function with another signature"] += 1
        else:
            yield before[name], after[name]


def _by_name(functions: Iterator[MinedFunction]) -> dict[tuple[str, str], MinedFunction]:
    """`(owner, name)` -> function, without those that share both (overloads, branches)."""
    several: dict[tuple[str, str], list[MinedFunction]] = {}
    for function in functions:
        several.setdefault((function.owner, function.name), []).append(function)
    return {name: found[0] for name, found in several.items() if len(found) == 1}


def _is_new(repair: Repair, seen: set[bytes], skips: Counter[str]) -> bool:
    """False for a repair that another branch has too, as a cherry-pick."""
    key = hashlib.sha256("\0".join(map(program_of, repair)).encode()).digest()[:16]
    if key in seen:
        skips["history: repeated"] += 1
        return False
    seen.add(key)
    return True
