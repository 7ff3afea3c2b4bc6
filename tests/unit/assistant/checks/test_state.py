"""What a function is seen to change outside of itself, and what it is not blamed for."""

import ast
import textwrap

import pytest

pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.checks.state import FunctionNode, outer_writes

FILE = """
import collections
import heapq
import os
from shared import BOARD

LIMIT = 3
CACHE = {}
ROWS = [[1], [2]]


def remember(key):
    CACHE[key] = True


def rows():
    return ROWS


def fresh():
    made = []
    return made


class Box:
    size = 1
"""


def writes(body: str, parameters: str = "items, key", *, is_method: bool = False) -> set[str]:
    whole = ast.parse(FILE)
    [function] = ast.parse(f"def work({parameters}):\n{textwrap.indent(body, '    ')}").body
    assert isinstance(function, FunctionNode)
    return outer_writes(function, whole, is_method=is_method)


@pytest.mark.parametrize(
    "body, found",
    [
        ("CACHE[key] = 1", {"CACHE[...]"}),
        ("c = CACHE\nc[key] = 1", {"CACHE[...]"}),
        ("a = b = CACHE\nc, d = b, 1\nc[key] = d", {"CACHE[...]"}),
        ("del CACHE[key]", {"CACHE[...]"}),
        ("if (c := CACHE): c[key] += 1", {"CACHE[...]"}),
        ("c = CACHE if key else {}\nc[key] = 1", {"CACHE[...]"}),
        ("c = {} or CACHE\nc[key] = 1", {"CACHE[...]"}),
        ("CACHE.setdefault(key, []).append(1)", {"CACHE.setdefault()", "CACHE.append()"}),
        ("save = CACHE.update\nsave({key: 1})", {"CACHE.update()"}),
        ("for row in ROWS: row[0] = key", {"ROWS[...]"}),
        ("for row in list(ROWS): row.clear()", {"ROWS.clear()"}),
        ("first, *rest = ROWS\nrest[0].pop()", {"ROWS.pop()"}),
        ("row = ROWS[0]\nrow += [key]", {"ROWS[...]"}),
        ("r = ROWS\nr += items", {"ROWS[...]"}),
        ("box = [CACHE]\nbox[0][key] = 1", {"CACHE[...]"}),
        ("[row.pop() for row in ROWS]", {"ROWS.pop()"}),
        ("def put(c): c[key] = 1\nput(CACHE)", {"CACHE[...]"}),
        ("(lambda c: c.pop())(CACHE)", {"CACHE.pop()"}),
        ("def get(): return CACHE\nget()[key] = 1", {"CACHE[...]"}),
        ("rows()[0] = key", {"ROWS[...]"}),
        ("remember(key)", {"CACHE[...]"}),
        ("heapq.heappush(ROWS, key)", {"ROWS by heapq.heappush()"}),
        ("list.append(ROWS, key)", {"ROWS by list.append()"}),
        ("Box.size = 2", {"Box.size"}),
        ("b = Box\nb.size = 2", {"Box.size"}),
        ("os.environ[key] = 'a'", {"os.environ[...]"}),
        ("e = os.environ\ne.update({})", {"os.environ.update()"}),
        ("BOARD.add(key)", {"BOARD.add()"}),
        ("global LIMIT\nLIMIT = 4", {"LIMIT"}),
        ("items.sort()", {"the argument items"}),
        ("mine = items\nmine.sort()\nreturn mine", {"the argument items"}),
        ("for item in items: item.append(1)", {"the argument items"}),
        ("items.sort()\nitems = []", {"the argument items"}),
        ("items += [1]", {"the argument items"}),
        ("match CACHE:\n    case c: c[key] = 1", {"c[...]"}),
    ],
)
def test_a_change_of_an_outer_object_is_seen_through_names_methods_and_loops(body: str, found: set[str]) -> None:
    assert writes(body) >= found


@pytest.mark.parametrize(
    "body",
    [
        "made = list(items)\nmade.sort()\nmade[0] = 1\nreturn made",
        "items = sorted(items)\nitems.pop()\nitems[0] = key",
        "queue = collections.deque(items)\nwhile queue: queue.popleft()",
        "groups = collections.defaultdict(list)\nfor item in items: groups[item].append(key)",
        "total = LIMIT\ntotal += 1\nkey += 1\nreturn total",
        "head = items[:2]\nhead.append(key)",
        "words = key.split()\nwords.sort()",
        "copy = CACHE.copy()\ncopy[key] = 1",
        "rest = [row for row in ROWS if row]\nrest.append([])",
        "made = fresh()\nmade.append(key)",
        "walker = iter(items)\nreturn next(walker)",
        "box = Box()\nbox.size = 2",
        "add = [].append\nadd(key)",
        "return CACHE.get(key), max(ROWS), len(items)",
    ],
)
def test_objects_of_its_own_are_its_own(body: str) -> None:
    assert writes(body) == set()


def test_a_method_changes_attributes_of_its_object_by_name() -> None:
    body = "self.size = 1\nself.items.append(key)\nmine = self\nmine.seen = 2"
    assert writes(body, "self, key", is_method=True) == {"self.size", "self.items.append()", "self.seen"}
