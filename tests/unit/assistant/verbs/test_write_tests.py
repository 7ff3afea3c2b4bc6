"""Tests that a model wrote hold as the file that a user gets."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.files import WorkingFolder
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.verbs.write_tests import make_tests
from mftcoder.errors import ConfigError


@dataclass
class Unasked:
    """A model and a sandbox that note whether they were asked."""

    asked: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return lambda *_, **__: SimpleNamespace(outcome="failed", why="", detail="", text="", is_cut=False)


def function_in(folder: Path, name: str) -> FunctionText:
    (folder / name).write_text("def area(width, height):\n    return width * height\n")
    return find_function(WorkingFolder(folder).read(name), "area")


@pytest.mark.parametrize("name", ["my-file.py", "2d.py", "class.py"])
def test_a_file_that_no_test_can_import_is_refused_before_the_model_is_asked(tmp_path: Path, name: str) -> None:
    model: Any = Unasked()
    with pytest.raises(ConfigError, match="tests cannot import a file of this name"):
        make_tests(model, function_in(tmp_path, name), model, rounds=1, count=2)
    assert model.asked == []
