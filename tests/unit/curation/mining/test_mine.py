"""Mining a small repository: five tasks, split by module, the same result every time, and a count of all that is dropped."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mftcoder.curation.mining.functions import mine_functions
from mftcoder.curation.mining.mine import Mined, MiningOptions, mine
from mftcoder.curation.mining.sources import SourceModule, packages_of, read_modules, source_files
from mftcoder.errors import DataError

MODULE = '''
import math


class Shape:
    def area_of(self, width, height):
        """Return the area of a rectangle of this width and height."""
        scaled = width * height
        if scaled < 0:
            return -scaled
        return scaled


def mean_of_{n}(values, start=0):
    """Return the arithmetic mean of a list of numbers.

    >>> mean_of_{n}([1, 2, 3])
    2.0
    """
    # the sum goes first
    total = start + {n}
    for value in values:
        total += value
    return total / len(values)


def tiny():
    return 1


def __getattr__(name):
    found = math.floor(len(name) / 2) + {n}
    return found if found > 3 else None
'''
TEST = """
import unittest


class MeanTest(unittest.TestCase):
    def test_mean_of_one(self):
        self.assertEqual(mean_of_{n}([4]), 4 + {n})
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "tests").mkdir(parents=True)
    for n in range(30):
        (folder / f"part{n}.py").write_text(MODULE.replace("{n}", str(n)))
        (folder / "tests" / f"test_part{n}.py").write_text(TEST.replace("{n}", str(n)))
    return folder


def module_of(text: str) -> SourceModule:
    import ast

    return SourceModule("part.py", text, ast.parse(text))


def python_files(folder: Path) -> list[Path]:
    return source_files(folder, ["python"], Counter())


def modules(mined: Mined, side: str) -> set[str]:
    return {record["source"].split(":")[0] for task in mined.tasks.values() for record in getattr(task, side)}


def test_every_task_gets_examples_and_no_module_is_on_both_sides(repository: Path) -> None:
    mined = mine(repository, MiningOptions(valid_share=0.3))
    assert all(task.train and task.valid for task in mined.tasks.values())
    assert modules(mined, "train") & modules(mined, "valid") == set()
    assert len(modules(mined, "train") | modules(mined, "valid")) == 30


def test_a_test_file_is_on_one_side_too(repository: Path) -> None:
    mined = mine(repository, MiningOptions(valid_share=0.3))
    files = {
        side: {r["id"].split("#")[1].split(":")[0] for r in getattr(mined.tasks["write_test"], side) if "#" in r["id"]}
        for side in ("train", "valid")
    }
    assert files["train"]
    assert files["valid"]
    assert files["train"] & files["valid"] == set()


def test_the_same_folder_gives_the_same_records(repository: Path) -> None:
    first, second = (json.dumps([vars(t) for t in mine(repository, MiningOptions()).tasks.values()]) for _ in range(2))
    assert first == second


def test_another_seed_gives_another_split(repository: Path) -> None:
    splits = {frozenset(modules(mine(repository, MiningOptions(valid_share=0.3, seed=s)), "valid")) for s in range(3)}
    assert len(splits) == 3


def test_another_module_does_not_move_the_ones_that_were_there(repository: Path) -> None:
    before = modules(mine(repository, MiningOptions(valid_share=0.3)), "valid")
    (repository / "another.py").write_text(MODULE.replace("{n}", "99"))
    assert modules(mine(repository, MiningOptions(valid_share=0.3)), "valid") - {"another.py"} == before


def test_a_limit_cuts_both_sides_in_proportion_and_is_counted(repository: Path) -> None:
    full = mine(repository, MiningOptions(valid_share=0.25, tasks=("repair_function",)))
    cut = mine(repository, MiningOptions(valid_share=0.25, tasks=("repair_function",), max_per_task=9))
    task, whole = cut.tasks["repair_function"], full.tasks["repair_function"]
    assert (len(task.train), len(task.valid)) == (9, 3)
    assert cut.skips["repair_function: over the limit"] == len(whole.train) + len(whole.valid) - 12
    assert task.train == whole.train[:9]


def test_copies_are_kept_once(repository: Path) -> None:
    mined = mine(repository, MiningOptions())
    assert mined.functions == 30 + 1  # a mean a module, and one of thirty equal methods
    assert mined.skips["function: repeated"] == 29
    assert mined.skips["function: too short"] == 30
    assert mined.skips["function: special method"] == 30


def test_files_that_cannot_be_read_are_counted_not_fatal(repository: Path) -> None:
    (repository / "latin.py").write_bytes(b"# coding: latin-1\n# caf\xe9\n" + MODULE.replace("{n}", "77").encode())
    (repository / "wrong.py").write_bytes(b"x = '\xe9'\n")
    (repository / "unknown.py").write_bytes(b"# coding: klingon\n")
    (repository / "python2.py").write_text("print 'hello'\n")
    (repository / "null.py").write_bytes(b"x = 1\x00\n")
    (repository / "deep.py").write_text("(" * 5000 + ")" * 5000)
    (repository / "large.py").write_text("x = 1\n" * 200_000)
    mined = mine(repository, MiningOptions())
    files = {reason: count for reason, count in mined.skips.items() if reason.startswith("file: ")}
    assert files == {"file: unknown or wrong encoding": 2, "file: does not parse": 3, "file: over 1 MB": 1}
    assert "latin.py" in modules(mined, "train") | modules(mined, "valid")


def test_a_link_loop_hidden_and_vendored_folders_are_passed_over(repository: Path) -> None:
    (repository / "loop").symlink_to(repository)
    for name in (".git", "site-packages", "node_modules"):
        (repository / name).mkdir()
        (repository / name / "x.py").write_text("x = 1\n")
    assert len(python_files(repository)) == 60


def test_a_folder_without_python_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of python.*\.py"):
        mine(tmp_path, MiningOptions())


def test_reading_yields_one_item_a_file_for_the_progress_bar(repository: Path) -> None:
    (repository / "python2.py").write_text("print 'hello'\n")
    files = python_files(repository)
    items = list(read_modules(repository, files, Counter()))
    assert len(items) == len(files) == 61
    assert items.count(None) == 1


def test_a_function_is_the_sum_of_its_parts() -> None:
    functions = list(mine_functions(module_of(MODULE.replace("{n}", "5")), Counter()))
    method, mean = functions
    assert (method.owner, method.name, method.header) == ("Shape", "area_of", "def area_of(self, width, height):\n")
    assert mean.header + mean.docstring_text + mean.body.rstrip("\n") == mean.source
    assert mean.docstring.startswith("Return the arithmetic mean")
    assert mean.body.startswith("    # the sum goes first\n    total = start + 5\n")
    assert MODULE.replace("{n}", "5").splitlines()[mean.line - 1].startswith("def mean_of_5")


def test_decorators_belong_to_the_header() -> None:
    text = "import functools\n\n@functools.cache\ndef twice(value):\n    doubled_value = value * 2\n    return doubled_value + 0\n"
    (function,) = mine_functions(module_of(text), Counter())
    assert function.header == "@functools.cache\ndef twice(value):\n"


def test_a_text_left_of_the_method_is_counted_as_immovable() -> None:
    text = 'class A:\n    def show(self):\n        text = """\nleft of everything\n"""\n        return text.strip().upper() + "!"\n'
    skips: Counter[str] = Counter()
    assert list(mine_functions(module_of(text), skips)) == []
    assert skips == {"function: indentation that cannot be moved": 1}


def test_the_packages_of_a_file_begin_where_python_begins_them(tmp_path: Path) -> None:
    for folder in ("repo/src/ours/deep/data", "repo/scripts/more"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("repo", "repo/src/ours", "repo/src/ours/deep"):  # data is a namespace package
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "repo" / "pyproject.toml").touch()  # its own __init__.py is a stray one
    for folder, path, packages in (
        ("repo", "src/ours/deep/a.py", ("ours", "deep")),
        ("repo", "src/ours/deep/data/a.py", ("ours", "deep", "data")),
        ("repo", "scripts/more/a.py", ("scripts", "more")),
        ("repo", "a.py", ()),
        ("repo/src", "ours/a.py", ("ours",)),
        ("repo/src/ours", "a.py", ("ours",)),
        ("repo/src/ours/deep", "a.py", ("ours", "deep")),
    ):
        assert packages_of(tmp_path / folder, path) == packages
    (tmp_path / "repo/src/ours/deep/a.py").write_text("x = 1\n")
    (module,) = read_modules(tmp_path / "repo", [tmp_path / "repo/src/ours/deep/a.py"], Counter())
    assert module is not None and module.packages == ("ours", "deep") and module.path == "src/ours/deep/a.py"
