"""What another body of a function may do, and what it may not."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.checks.changes import changed_function
from mftcoder.assistant.checks.patches import make_patch
from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import find_function
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.example import fenced

FILE = """\
import contextlib
import os
import string

LIMIT = 3
CACHE = {}


class Settings:
    pass


class Basket:
    def __init__(self):
        self.items = []

    def put(self, item):
        CACHE[item] = True
        return len(self.items)


def other(path):
    return os.path.join(path, "a")


def total(items, string):
    \"\"\"Add them up.

    >>> total([1, 2], "")
    3
    \"\"\"
    result = 0
    for item in items:
        result = result + item  # type: ignore
    return result
"""
TOTAL = FILE[FILE.index("def total") :]
LOOP = TOTAL[TOTAL.index("    result = 0") :]


def refused(folder: Path, answer: str, name: str = "total") -> str:
    """The code of the refusal; empty for none."""
    (folder / "a.py").write_text(FILE)
    function = find_function(WorkingFolder(folder).read("a.py"), name)
    try:
        changed_function(function, SimpleNamespace(text=fenced(answer), is_cut=False))
    except RefusedAnswer as error:
        return error.code
    return ""


@pytest.mark.parametrize(
    "body",
    [
        "    return sum(items)\n",
        "    result = 0\n    for item in items:\n        result += item  # type: ignore\n    return result\n",
        "    queue = list(items)\n    result = 0\n    while queue:\n        result += queue.pop()\n    return result\n",
        "    return sum(items) + 0 * len(string)\n",
        "    import datetime\n    datetime.time(1)\n    return sum(items)\n",
    ],
)
def test_an_honest_function_with_its_docstring_and_example_passes(tmp_path: Path, body: str) -> None:
    assert refused(tmp_path, TOTAL.replace(LOOP, body)) == ""


@pytest.mark.parametrize(
    "body, code",
    [
        ("    return sum(itms)  # noqa\n", "directive"),
        ("    # ruff: noqa\n    return sum(itms)\n", "directive"),
        ("    global LIMIT\n    LIMIT = 4\n    return sum(items)\n", "outside"),
        ("    Settings.debug = True\n    return sum(items)\n", "outside"),
        ("    CACHE[LIMIT] = items\n    return sum(items)\n", "outside"),
        ("    c = CACHE\n    c[LIMIT] = items\n    return sum(items)\n", "outside"),
        ("    items.sort()\n    return sum(items)\n", "outside"),
        ("    contextlib.os.getcwd()\n    return sum(items)\n", "new_power"),
        ("    from contextlib import os as inner\n    return sum(items)\n", "new_power"),
        ("    modules = [os]\n    return sum(items)\n", "new_power"),
        ("    import os as string\n    string.getcwd()\n    return sum(items)\n", "new_power"),
        ("    (x for x in items).gi_frame\n    return sum(items)\n", "new_power"),
    ],
)
def test_a_new_power_or_a_change_elsewhere_is_refused(tmp_path: Path, body: str, code: str) -> None:
    assert refused(tmp_path, TOTAL.replace(LOOP, body)) == code


def test_the_examples_of_a_docstring_stay(tmp_path: Path) -> None:
    answer = TOTAL.replace(LOOP, "    return sum(items)\n")
    example = '    >>> total([1, 2], "")\n    3\n'
    assert refused(tmp_path, answer.replace(example, "")) == "lost_docstring"
    assert refused(tmp_path, answer.replace("    3\n", "    4\n")) == "lost_docstring"
    assert refused(tmp_path, answer.replace(example, example * 2)) == "new_example"


def test_what_the_old_code_changes_may_be_changed_and_so_may_attributes_that_the_class_has(tmp_path: Path) -> None:
    put = "def put(self, item):\n    self.items.append(item)\n    seen = CACHE\n    seen[item] = True\n    return len(self.items)\n"
    assert refused(tmp_path, put, "Basket.put") == ""
    assert refused(tmp_path, put.replace("self.items.append", "self.others.append"), "Basket.put") == "outside"


def test_a_change_of_the_other_function_of_one_name_is_refused(tmp_path: Path) -> None:
    text = (
        "class Box:\n    @property\n    def size(self):\n        return self._size\n\n    @size.setter\n    def size(self, size):\n"
        "        self._size = size\n"
    )
    (tmp_path / "a.py").write_text(text)
    getter = find_function(WorkingFolder(tmp_path).read("a.py"), 3)

    def answer(old: str, new: str) -> SimpleNamespace:
        patch = make_patch("a.py", text, text.replace(old, new))
        return SimpleNamespace(text=f"```diff\n{patch}```", is_cut=False)

    code = changed_function(getter, answer("return self._size", "size = self._size\n        return size"))
    assert code == "@property\ndef size(self):\n    size = self._size\n    return size\n"
    with pytest.raises(RefusedAnswer) as error:
        changed_function(getter, answer("self._size = size", "self._size = int(size)"))
    assert error.value.code == "outside"
