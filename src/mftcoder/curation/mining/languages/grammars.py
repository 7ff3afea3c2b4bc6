"""What the miner needs to know of each language: its files, its words, and the names of its syntax nodes in tree-sitter."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mftcoder.registry import words


@dataclass(frozen=True)
class Grammar:
    """One language. The names of nodes are those of its tree-sitter grammar."""

    title: str
    suffixes: tuple[str, ...]
    doc_name: str  # what a comment that documents a function is called
    functions: frozenset[str] = frozenset()
    wrappers: frozenset[str] = frozenset()  # nodes around a function that belong to its text
    containers: frozenset[str] = frozenset()  # nodes that can hold functions
    classes: Mapping[str, str] = field(default_factory=dict)  # node of a class -> field with its name
    doc_starts: tuple[str, ...] = ()  # beginnings of a comment that documents what follows
    owner_word: str = "class"
    class_of: str = "class {owner} {{\n{code}\n}}\n"  # the text in which a method parses


LANGUAGES: dict[str, Grammar] = {
    "python": Grammar("Python", (".py",), "docstring"),
    "java": Grammar(
        "Java",
        (".java",),
        "Javadoc comment",
        functions=frozenset({"method_declaration"}),
        containers=frozenset({"class_body", "interface_body", "enum_body", "enum_body_declarations"}),
        classes=dict.fromkeys(
            ("class_declaration", "interface_declaration", "enum_declaration", "record_declaration"), "name"
        ),
        doc_starts=("/**",),
    ),
    "javascript": Grammar(
        "JavaScript",
        (".js", ".mjs", ".cjs", ".jsx"),
        "JSDoc comment",
        functions=words(
            "function_declaration generator_function_declaration method_definition variable_declarator assignment_expression"
        ),
        wrappers=frozenset({"export_statement", "lexical_declaration", "variable_declaration", "expression_statement"}),
        containers=words(
            "call_expression parenthesized_expression arguments unary_expression function_expression arrow_function "
            "statement_block class_body"
        ),
        classes={"class_declaration": "name"},
        doc_starts=("/**",),
    ),
    "go": Grammar(
        "Go",
        (".go",),
        "doc comment",
        functions=frozenset({"function_declaration", "method_declaration"}),
        doc_starts=("//", "/*"),
        owner_word="type",
        class_of="{code}\n",
    ),
    "rust": Grammar(
        "Rust",
        (".rs",),
        "rustdoc comment",
        functions=frozenset({"function_item"}),
        containers=frozenset({"mod_item", "declaration_list"}),
        classes={"impl_item": "type", "trait_item": "name"},
        doc_starts=("///", "/**"),
        owner_word="type",
        class_of="impl {owner} {{\n{code}\n}}\n",
    ),
    "cpp": Grammar(
        "C++",
        (".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx"),
        "documentation comment",
        functions=frozenset({"function_definition"}),
        wrappers=frozenset({"template_declaration"}),
        containers=words(
            "namespace_definition declaration_list linkage_specification field_declaration_list preproc_ifdef preproc_if "
            "preproc_else preproc_elif"
        ),
        classes={"class_specifier": "name", "struct_specifier": "name"},
        doc_starts=("//", "/*"),
        class_of="class {owner} {{\n{code}\n}};\n",
    ),
}
"""All languages that are mined, by the name that `--languages` takes. A fenced block has the same name."""

C_HEADER = ".h"
"""Files of this suffix are read as C++ where the folder also has files that are surely C++."""
COMMENTS = frozenset({"comment", "line_comment", "block_comment", "html_comment"})
BLOCKS = frozenset({"block", "statement_block", "compound_statement"})
STATEMENT_LISTS = BLOCKS | {"statement_list"}
"""A named child of one of these is a statement. In Go, a block holds one `statement_list`."""


def title_of(language: str) -> str:
    """The language's name in a sentence: `C++`."""
    return LANGUAGES[language].title
