"""The syntax tree of one function's text, with positions in characters, and walks that do not recurse."""

from collections.abc import Iterator
from functools import cached_property

from mftcoder.curation.mining.languages.grammars import COMMENTS, LANGUAGES
from mftcoder.curation.syntax import Node, parse


class FunctionTree:
    """A function that parses without an error, alone or as a member of a class with its owner's name."""

    def __init__(self, source: str, root: Node, shift: int):
        self.source = source
        self.root = root
        self._bytes = source.encode()
        self.shift = shift
        """Bytes of the text before the function."""

    @cached_property
    def nodes(self) -> list[Node]:
        """All nodes that lie within the function's text, in its order."""
        end = self.shift + len(self._bytes)
        return [node for node in walk(self.root) if node.start_byte >= self.shift and node.end_byte <= end]

    @cached_property
    def body(self) -> Node | None:
        """The block that the function is made of: the first one of its text."""
        return next((node for node in self.nodes if node.type in _BODIES), None)

    def span(self, node: Node) -> tuple[int, int]:
        """`(start, end)` of a node, as indices of the source's characters."""
        return self._character(node.start_byte), self._character(node.end_byte)

    def _character(self, byte: int) -> int:
        offset = byte - self.shift
        return offset if self.source.isascii() else len(self._bytes[:offset].decode(errors="ignore"))

    @cached_property
    def tokens(self) -> list[bytes]:
        """The function without comments and whitespace. Of equal programs these are equal."""
        return tokens(self.nodes)


_BODIES = frozenset({"block", "statement_block", "compound_statement"})


def function_tree(source: str, language: str, owner: str = "") -> FunctionTree | None:
    """The tree of a function's text; None if it does not parse."""
    surrounding = LANGUAGES[language].class_of
    contexts = [surrounding] if owner else []
    for context in (*contexts, "{code}\n"):
        before = context.split("{code}")[0].format(owner=owner)
        tree = parse(context.format(owner=owner, code=source), language)
        if tree is not None and not tree.root_node.has_error:
            return FunctionTree(source, tree.root_node, len(before.encode()))
    return None


def walk(root: Node) -> Iterator[Node]:
    """The node and all below it, but nothing inside comments, in the order of the text. A loop, because trees can be deep."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        if node.type not in COMMENTS:
            waiting.extend(reversed(node.children))


def tokens(nodes: list[Node]) -> list[bytes]:
    """The texts of the leaves that are no comments."""
    return [node.text or b"" for node in nodes if not node.child_count and node.type not in COMMENTS]


def text_of(node: Node | None) -> str:
    """The text of a node; empty for None."""
    return (node.text or b"").decode(errors="replace") if node is not None else ""
