"""What a function uses of its repository: the imports of its file that it names, and the signatures of the functions that it calls.

Calls are told by names only. A name counts for the function of this name in the same file, or else for the only one in the repository.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from mftcoder.curation.mining.functions import MinedFunction, first_line, functions_of
from mftcoder.curation.mining.languages.functions import first_row, found_functions
from mftcoder.curation.mining.languages.trees import text_of
from mftcoder.curation.mining.sources import SourceModule

MAX_CHARS = 1500  # of the context of one function
MIN_NAME_CHARS = 3
_IMPORTS = frozenset(
    {"import_declaration", "import_statement", "use_declaration", "preproc_include", "using_declaration"}
)
_WORD = re.compile(r"[A-Za-z_$][\w$]*")
_CALLED = re.compile(r"([A-Za-z_$][\w$]*)\s*(?:::<[^()]*>)?\(")
_PATH_WORDS = frozenset(
    {"import", "from", "use", "static", "const", "require", "as", "include", "crate", "self", "super"}
)


_Signature = tuple[str, str]  # the path of its file, and its text


@dataclass
class Context:
    """The imports and signatures of a repository's modules; `add` them all before the first question."""

    _imports: dict[str, list[str]] = field(default_factory=dict)
    _of_file: dict[tuple[str, str], list[_Signature]] = field(default_factory=lambda: defaultdict(list))
    _of_language: dict[tuple[str, str], list[_Signature]] = field(default_factory=lambda: defaultdict(list))

    def add(self, module: SourceModule) -> None:
        """Note what a module imports and defines."""
        self._imports[module.path] = list(_imports(module))
        for name, text in _signatures(module):
            self._of_file[module.path, name].append((module.path, text))
            self._of_language[module.language, name].append((module.path, text))

    def of(self, function: MinedFunction) -> str:
        """Imports and signatures that the function uses, as code; empty if there are none. Whole parts up to MAX_CHARS."""
        code = function.header + function.body
        words = set(_WORD.findall(code))
        imports = [
            text for text in self._imports.get(function.module, ()) if set(_WORD.findall(text)) - _PATH_WORDS & words
        ]
        called = dict.fromkeys(name for name in _CALLED.findall(code) if len(name) >= MIN_NAME_CHARS)
        found = [signature for name in called if name != function.name and (signature := self._called(function, name))]
        mark = "#" if function.language == "python" else "//"
        by_path: dict[str, list[str]] = defaultdict(list)
        for path, text in found:
            by_path[path].append(text)
        parts = ["\n".join(imports)] if imports else []
        parts += [f"{mark} {path}\n" + "\n".join(texts) for path, texts in by_path.items()]
        return "\n\n".join(_within(parts))

    def _called(self, function: MinedFunction, name: str) -> _Signature | None:
        """The one function that a call of this name means."""
        for found in (self._of_file.get((function.module, name)), self._of_language.get((function.language, name))):
            if found:
                return found[0] if len(found) == 1 else None
        return None


def _within(parts: list[str]) -> Iterator[str]:
    left = MAX_CHARS + 2
    for part in parts:
        left -= len(part) + 2  # and the blank line between two parts
        if left >= 0:
            yield part


def _imports(module: SourceModule) -> Iterator[str]:
    """The statements at the top of a module that bring names of other modules; Go's are taken apart."""
    if module.language == "python":
        yield from (ast.unparse(node) for node in module.tree.body if isinstance(node, ast.Import | ast.ImportFrom))
        return
    for node in module.tree.root_node.children:
        text = text_of(node).strip()
        if node.type == "import_declaration" and module.language == "go":
            yield from (f"import {line.strip()}" for line in re.findall(r'[\w.]*\s*"[^"\n]+"', text))
        elif node.type in _IMPORTS or (node.type == "lexical_declaration" and "require(" in text and "\n" not in text):
            yield text


def _signatures(module: SourceModule) -> Iterator[tuple[str, str]]:
    """`(name, signature)` of every function of a module, on one line."""
    if module.language == "python":
        lines = module.text.splitlines()
        for _, node in functions_of(module.tree):
            header = " ".join(" ".join(lines[first_line(node) - 1 : node.body[0].lineno - 1]).split())
            if node.body[0].lineno > node.lineno and '"""' not in header:
                yield node.name, header
        return
    rows = module.text.split("\n")
    for found in found_functions(module.tree.root_node, module.language):
        first, end = first_row(found.node), found.body.start_point
        last = rows[end.row].encode()[: end.column].decode()
        yield found.name, " ".join(" ".join([*rows[first : end.row], last]).split())
