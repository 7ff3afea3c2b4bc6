"""The functions of a file as dedented texts, each with its place, so that another text can be put there."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from mftcoder.assistant.files import SourceFile, unknown_function
from mftcoder.curation.example import parse_python
from mftcoder.curation.mining.functions import first_line, functions_of
from mftcoder.curation.mining.languages.functions import doc_rows, first_row, found_functions
from mftcoder.curation.mining.languages.grammars import LANGUAGES
from mftcoder.curation.syntax import parse
from mftcoder.errors import ConfigError


@dataclass(frozen=True)
class FunctionText:
    """A function or method of a file, decorators and doc comment included."""

    file: SourceFile
    name: str  # `f` or `Class.f`
    first: int  # its first line, from 0
    end: int  # the line after its last one
    indent: str
    text: str

    @property
    def place(self) -> str:
        """FILE:FUNCTION."""
        return f"{self.file.name}:{self.name}"

    def placed(self, text: str) -> str:
        """The text of the whole file with another text in the place of the function."""
        lines = self.file.lines
        body = "".join(
            self.indent + line if line.strip() else "\n" for line in f"{text.rstrip(chr(10))}\n".splitlines(True)
        )
        if self.end == len(lines) and not self.file.text.endswith("\n"):
            body = body.removesuffix("\n")
        return "".join([*lines[: self.first], body, *lines[self.end :]])


def functions_in(file: SourceFile) -> list[FunctionText]:
    """The top-level functions and the methods of top-level classes, in order; those that cannot be moved are left out."""
    spans = _python_spans(file) if file.language == "python" else _other_spans(file)
    lines = file.lines
    made = [_function(file, lines, *span) for span in spans]
    return [function for function in made if function is not None]


def find_function(file: SourceFile, place: str | int) -> FunctionText:
    """The function of this name, or the one that holds this line, from 1. ConfigError if there is none, or more than one."""
    functions = functions_in(file)
    if isinstance(place, int):
        return _at_line(file, functions, place)
    name = place
    found = [function for function in functions if function.name == name]
    if not found:  # a method may be named without its class where that is clear
        found = [function for function in functions if function.name.rpartition(".")[2] == name]
    if not found and file.language == "python" and _is_elsewhere(file, name):
        raise ConfigError(
            f"{file.name}: {name} cannot be worked on: it is no function at the top level or of a class there, or it holds a text of "
            "several lines that indentation would change"
        )
    if not found:
        raise unknown_function(file, name, [function.name for function in functions])
    defined = [function for function in found if not _is_overload(function)] if len(found) > 1 else found
    if len(defined) != 1:
        places = ", ".join(f"{file.name}:{function.first + 1} ({function.name})" for function in defined or found)
        raise ConfigError(f"{file.name}: '{name}' is not one function. Give its line: {places}")
    return defined[0]


def _at_line(file: SourceFile, functions: Sequence[FunctionText], line: int) -> FunctionText:
    found = [function for function in functions if function.first < line <= function.end]
    if len(found) != 1:
        lines = ", ".join(f"{one.first + 1}-{one.end} ({one.name})" for one in functions[:20])
        raise ConfigError(f"{file.name}:{line}: is in no function that can be worked on. Functions: {lines or 'none'}")
    return found[0]


def _is_overload(function: FunctionText) -> bool:
    """Whether it only declares types: `@overload` of Python."""
    if function.file.language != "python":
        return False
    node = ast.parse(function.text).body[0]
    return any(ast.unparse(one).split(".")[-1] == "overload" for one in getattr(node, "decorator_list", ()))


def _is_elsewhere(file: SourceFile, name: str) -> bool:
    """Whether a function of this name is nested, stands in a condition, or was left out."""
    wanted = name.rpartition(".")[2]
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == wanted
        for node in ast.walk(python_tree(file))
    )


def python_tree(file: SourceFile) -> ast.Module:
    """The syntax tree. ConfigError if the file does not parse."""
    tree = parse_python(file.text)
    if tree is None or file.text[:1] in (" ", "\t"):
        raise ConfigError(f"{file.name}: does not parse as Python. Correct the file first")
    return tree


Span = tuple[str, int, int]
"""Name, first line and the line after the last one, from 0."""


def _python_spans(file: SourceFile) -> list[Span]:
    found = functions_of(python_tree(file))
    return [
        (f"{owner}.{node.name}" if owner else node.name, first_line(node) - 1, node.end_lineno or node.lineno)
        for owner, node in found
    ]


def _other_spans(file: SourceFile) -> list[Span]:
    tree = parse(file.text, file.language)
    if tree is None:
        raise ConfigError(f"{file.name}: cannot be parsed")
    lines, spans = file.text.split("\n"), []
    for found in found_functions(tree.root_node, file.language):
        first = first_row(found.node)
        docs = doc_rows(found.node, lines, LANGUAGES[file.language], first)
        name = f"{found.owner}.{found.name}" if found.owner else found.name
        spans.append((name, docs[0] if docs else first, found.node.end_point.row + 1))
    return spans


def _function(file: SourceFile, lines: Sequence[str], name: str, first: int, end: int) -> FunctionText | None:
    """The function with its text; None if its text cannot be taken out and put back."""
    taken = lines[first:end]
    indent = taken[0][: len(taken[0]) - len(taken[0].lstrip())]
    if any(line.strip() and not line.startswith(indent) for line in taken):
        return None
    text = "".join(line[len(indent) :] if line.strip() else "\n" for line in taken)
    made = FunctionText(file, name, first, end, indent, text if text.endswith("\n") else f"{text}\n")
    return made if _comes_back(made) else None


def _comes_back(function: FunctionText) -> bool:
    """Whether the function put back in its own place is the file: lines of blanks inside a text would be lost."""
    again = function.placed(function.text)
    if again == function.file.text or function.file.language != "python":
        return again == function.file.text
    return ast.dump(ast.parse(again)) == ast.dump(ast.parse(function.file.text))
