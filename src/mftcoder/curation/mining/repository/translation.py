"""The same function in two languages of one repository, found by names: its own, and that of its file.

`ranges.go` and `Ranges.java` hold one thing in two languages; `clampTo` and `clamp_to` are one function. A name that a file has twice, in
overloads or classes, makes no pair.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from mftcoder.curation.mining.functions import MinedFunction

MIN_NAME_CHARS = 4  # a name like `get` or `add` does not show that two functions do the same
_FOLDER_FILES = frozenset({"lib", "mod", "index", "main", "init"})
"""Files that say what their folder is, not what they are; the folder's name is taken for theirs."""


def pairs(functions: Iterable[MinedFunction]) -> Iterator[tuple[MinedFunction, MinedFunction]]:
    """Each two functions that are the same in two languages, in the order of the first's place and the second's."""
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
