"""Functions are found in six languages, and put back where they were."""

from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.assistant.files import SourceFile, WorkingFolder, parse_place
from mftcoder.assistant.functions import find_function, functions_in
from mftcoder.errors import ConfigError

FILES = {
    "a.py": "import x\n\n\n@x.y\ndef f(a):\n    return a\n\n\nclass C:\n    def m(self):\n        if self:\n\n            return '''\n    x'''\n",
    "a.java": "class C {\n    /** Doc. */\n    int m(int x) {\n        return x + 1;\n    }\n}\n",
    "a.js": "/** Doc. */\nexport function f(x) {\n  return x + 1;\n}\n",
    "a.go": "package a\n\n// f adds.\nfunc f(x int) int {\n\treturn x + 1\n}\n",
    "a.rs": "/// Doc.\n#[inline]\nfn f(x: i32) -> i32 {\n    x + 1\n}\n",
    "a.cpp": "namespace n {\n// Doc.\nint f(int x) {\n    return x + 1;\n}\n}\n",
}
FIRST = {
    "a.py": "@x.y",
    "a.java": "/** Doc. */",
    "a.js": "/** Doc. */",
    "a.go": "// f adds.",
    "a.rs": "/// Doc.",
    "a.cpp": "// Doc.",
}


def read(folder: Path, name: str, text: str) -> SourceFile:
    (folder / name).write_text(text)
    return WorkingFolder(folder).read(name)


@pytest.mark.parametrize("name", FILES)
def test_a_function_has_its_doc_comment_and_comes_back(tmp_path: Path, name: str) -> None:
    file = read(tmp_path, name, FILES[name])
    functions = functions_in(file)
    assert functions[0].text.startswith(FIRST[name])
    assert all(function.placed(function.text) == file.text for function in functions)


def test_a_method_is_dedented_and_named_by_its_class(tmp_path: Path) -> None:
    file = read(tmp_path, "a.py", FILES["a.py"])
    method = find_function(file, "C.m")
    assert method.text == "def m(self):\n    if self:\n\n        return '''\nx'''\n"
    assert find_function(file, "m") == method
    assert "    def m(self):\n        return 1\n" in method.placed("def m(self):\n    return 1\n")


def test_a_function_that_cannot_be_moved_is_not_offered(tmp_path: Path) -> None:
    text = "class C:\n    def m(self):\n        return '''\nx'''\n\n    def n(self):\n        return '''\n   \n        '''\n"
    assert functions_in(read(tmp_path, "a.py", text)) == []


@pytest.mark.parametrize(
    "text, name, problem",
    [
        ("def f(): pass\n", "g", "has no function 'g'"),
        ("def f(): pass\ndef f(): pass\n", "f", "is not one function"),
        ("class A:\n    def f(self): pass\nclass B:\n    def f(self): pass\n", "f", "is not one function"),
        ("def f(:\n", "f", "does not parse"),
        ("def f():\n    def g(): pass\n", "g", "g cannot be worked on"),
        ("x = 1\n", "f", "has none that can be worked on"),
    ],
)
def test_a_name_that_is_not_one_function_is_refused(tmp_path: Path, text: str, name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        find_function(read(tmp_path, "a.py", text), name)


def test_places_are_read() -> None:
    assert parse_place("a/b.py:f.g").function == "f.g"
    assert (parse_place("a.py:3").line, parse_place("a.py:3:7").column) == (3, 7)
    assert parse_place("C:/a.py").file == "C:/a.py"


NAMED_ALIKE = """\
from typing import overload


class Box:
    @property
    def size(self):
        return self._size

    @size.setter
    def size(self, size):
        self._size = size


@overload
def twice(x: int) -> int: ...


@overload
def twice(x: str) -> str: ...


def twice(x):
    return x + x
"""


def test_functions_of_one_name_are_told_apart_by_a_line(tmp_path: Path) -> None:
    file = read(tmp_path, "a.py", NAMED_ALIKE)
    with pytest.raises(ConfigError, match=r"'Box.size' is not one function. Give its line: a.py:5 .*, a.py:9 "):
        find_function(file, "Box.size")
    assert find_function(file, 9).text.startswith("@size.setter") and find_function(file, 11) == find_function(file, 9)
    assert find_function(file, 7).text.startswith("@property")
    with pytest.raises(
        ConfigError, match=r"a.py:3: is in no function that can be worked on. Functions: 5-7 \(Box.size\)"
    ):
        find_function(file, 3)


def test_of_overloads_the_one_with_a_body_is_meant(tmp_path: Path) -> None:
    assert "return x + x" in find_function(read(tmp_path, "a.py", NAMED_ALIKE), "twice").text


def test_overloads_of_java_and_cpp_are_named_by_a_line(tmp_path: Path) -> None:
    java = "class C {\n    int f(int x) {\n        return x + 1;\n    }\n    long f(long x) {\n        return x - 1;\n    }\n}\n"
    cpp = "int f(int x) {\n    return x + 1;\n}\nlong f(long x) {\n    return x - 1;\n}\n"
    for name, text in (("C.java", java), ("a.cpp", cpp)):
        file = read(tmp_path, name, text)
        with pytest.raises(ConfigError, match=r"is not one function. Give its line"):
            find_function(file, "f")
        assert "x - 1" in find_function(file, text[: text.index("x - 1")].count("\n") + 1).text
