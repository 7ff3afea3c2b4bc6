"""Names in a function's text that stand for something outside of it: no declaration that is visible at their place declares them.

Scopes count: in `{ let process = 1; } process.exit(0)` the second `process` is the one outside.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import Node
from mftcoder.registry import words


@dataclass(frozen=True)
class Naming:
    """How a language names and declares. The names of nodes are those of its grammar."""

    names: frozenset[str]
    """Leaves that name something."""
    declares: Mapping[str, str]
    """Node -> its field with the declared names; empty for the whole node."""
    scopes: frozenset[str]
    """Nodes at whose end a declaration ends."""
    late: frozenset[str] = frozenset()
    """Declarations that are visible only behind their end: in `x := x` the second x is another one."""
    hoisted: frozenset[str] = frozenset()
    """Declarations that are visible in the whole function."""
    is_first: bool = False
    """Whether only the first name of a declaration's field is declared."""


_SCOPES = words(
    "block statement_block compound_statement for_statement for_in_statement for_range_loop enhanced_for_statement "
    "for_expression catch_clause arrow_function function_expression function_declaration lambda_expression "
    "func_literal closure_expression match_arm match_block if_statement if_expression while_expression "
    "try_with_resources_statement function_item function_definition method_declaration generator_function "
    "expression_case type_case switch_case case_statement switch_block_statement_group switch_rule class_body "
    "expression_switch_statement default_case type_switch_statement communication_case lambda switch_statement"
)
NAMING: Mapping[str, Naming] = {
    "javascript": Naming(
        frozenset({"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"}),
        {
            "formal_parameters": "", "variable_declarator": "name", "catch_clause": "parameter",
            "for_in_statement": "left", "arrow_function": "parameter", "function_declaration": "name",
            "class_declaration": "name", "function_expression": "name",
        },
        _SCOPES,
        hoisted=frozenset({"variable_declaration"}),
    ),
    "go": Naming(
        frozenset({"identifier", "package_identifier", "type_identifier"}),
        {
            "short_var_declaration": "left", "var_spec": "name", "const_spec": "name", "range_clause": "left",
            "parameter_declaration": "name", "variadic_parameter_declaration": "name", "type_spec": "name",
            "type_switch_statement": "alias",
        },
        _SCOPES,
        late=frozenset({"short_var_declaration", "var_spec", "const_spec"}),
    ),
    "java": Naming(
        frozenset({"identifier", "type_identifier"}),
        {
            "variable_declarator": "name", "formal_parameter": "name", "enhanced_for_statement": "name",
            "catch_formal_parameter": "name", "resource": "name", "inferred_parameters": "", "lambda_expression": "parameters",
            "instanceof_expression": "name",
        },
        _SCOPES,
    ),
    "rust": Naming(
        frozenset({"identifier", "type_identifier", "shorthand_field_identifier"}),
        {
            "let_declaration": "pattern", "parameter": "pattern", "closure_parameters": "", "for_expression": "pattern",
            "let_condition": "pattern", "match_pattern": "", "const_item": "name",
        },
        _SCOPES,
        late=frozenset({"let_declaration", "let_condition"}),
    ),
    "cpp": Naming(
        frozenset({"identifier", "namespace_identifier", "type_identifier"}),
        {
            "init_declarator": "declarator", "declaration": "declarator", "parameter_declaration": "declarator",
            "for_range_loop": "declarator", "structured_binding_declarator": "", "alias_declaration": "name",
        },
        _SCOPES,
        is_first=True,
    ),
}  # fmt: skip


def foreign(node: Node, language: str) -> Iterator[Node]:
    """The names inside a function that are not its own."""
    naming = NAMING[language]
    visible: dict[str, list[tuple[int, int]]] = {}
    declared = set()
    for inner in walk(node):
        for name in _declared(inner, naming):
            declared.add(name.id)
            visible.setdefault(text_of(name), []).append(_reach(inner, node, naming))
    for inner in walk(node):
        if inner.type in naming.names and inner.id not in declared:
            spans = visible.get(text_of(inner), ())
            if _is_apart(inner) or not any(start <= inner.start_byte < end for start, end in spans):
                yield inner


def _is_apart(name: Node) -> bool:
    """Whether variables cannot hide what it names: a part of a path, a method of Java, a macro of Rust."""
    parent = name.parent
    if parent is None:
        return False
    is_method = parent.type == "method_invocation" and parent.child_by_field_name("name") == name
    return is_method or parent.type in _PATHS or parent.child_by_field_name("macro") == name


_PATHS = frozenset({"scoped_identifier", "qualified_identifier", "scoped_type_identifier"})


def declared_list(node: Node, language: str) -> list[str]:
    """All names that a function declares, in whichever scope; each as often as it is declared."""
    naming = NAMING[language]
    return [text_of(name) for inner in walk(node) for name in _declared(inner, naming)]


def _declared(node: Node, naming: Naming) -> list[Node]:
    """The nodes of the names that a node declares."""
    field = naming.declares.get(node.type)
    if field is None or (node.type == "range_clause" and not _has(node, ":=")):
        return []
    if node.type == "for_in_statement" and node.child_by_field_name("kind") is None:
        return []
    targets = node.children_by_field_name(field) if field else [node]
    if node.type == "lambda_expression":  # typed parameters are declarations of their own
        targets = [one for one in targets if one.type == "identifier"]
    found = [[one for one in walk(target) if one.type in naming.names and not _is_key(one)] for target in targets]
    return [one for names in found for one in (names[:1] if naming.is_first and field else names)]


def _has(node: Node, word: str) -> bool:
    return any(child.type == word for child in node.children)


def _is_key(name: Node) -> bool:
    """Whether it names no variable: the variant in `Some(x)`, a default value."""
    parent = name.parent
    if parent is None:
        return False
    return parent.child_by_field_name("type") == name or parent.type in ("scoped_identifier", "member_expression")


def _reach(node: Node, function: Node, naming: Naming) -> tuple[int, int]:
    """The bytes in which a declaration is visible."""
    parent = node.parent
    if parent is not None and parent.type in naming.hoisted:
        return function.start_byte, function.end_byte
    scope = node if node.type in naming.scopes and node.type != "function_declaration" else parent
    while scope is not None and scope != function and scope.type not in naming.scopes:
        scope = scope.parent
    scope = scope or function
    if node.type in naming.late:
        return node.end_byte, scope.end_byte
    return (scope if "formal_parameters" in naming.declares else node).start_byte, scope.end_byte
