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
