"""How Go and Java write what can share or change an object: the table that aliases.py reads."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

GO_SCALAR = r"(?:u?int(?:8|16|32|64)?|float(?:32|64)|complex(?:64|128)|string|bool|byte|rune|error)"
JAVA_SCALAR = (
    r"(?:int|long|short|byte|double|float|char|boolean|String|Integer|Long|Short|Byte|Double|Float|Character|Boolean)"
)


@dataclass(frozen=True)
class Forms:
    """How a language writes what can share or change an object. The names of nodes are those of its grammar."""

    places: Mapping[str, str]
    """Nodes of a part of an object -> the field with the object."""
    views: frozenset[str]
    """Methods and functions that give a window into an object, not a copy."""
    mutators: frozenset[str]
    """Methods that change their object."""
    changes_argument: Mapping[str, int]
    """Functions of the library that change an argument -> its number."""
    libraries: frozenset[str]
    """Classes or packages whose functions give new objects, numbers and texts."""
    makers: frozenset[str]
    """Functions and types that give a new object, whatever their arguments are."""


FORMS: Mapping[str, Forms] = {
    "go": Forms(
        {"index_expression": "operand", "selector_expression": "operand", "slice_expression": "operand"},
        frozenset(),
        frozenset(),
        {
            **dict.fromkeys(("copy", "append", "delete", "clear"), 0),
            **dict.fromkeys(("Ints", "Strings", "Float64s", "Slice", "SliceStable", "Sort", "Stable", "SortFunc", "Reverse"), 0),
            **dict.fromkeys(("SortStableFunc", "Push", "Pop", "Init", "Fix", "Remove", "Swap", "Delete", "Insert", "Compact"), 0),
        },
        frozenset({"strings", "strconv", "math", "bits", "unicode", "utf8", "errors", "fmt"}),
        frozenset({"len", "cap", "make", "new", "min", "max", "complex", "real", "imag"}),
    ),
    "java": Forms(
        {"array_access": "array", "field_access": "object", "cast_expression": "value"},
        frozenset(["keySet", "entrySet", "values", "iterator", "listIterator", "subList", "asList", "headSet", "tailSet", "subSet", "headMap", "tailMap", "subMap", "descendingMap", "descendingSet", "descendingIterator", "unmodifiableList", "unmodifiableMap", "unmodifiableSet", "synchronizedList", "requireNonNull", "requireNonNullElse", "orElse"]),
        frozenset(["add", "addAll", "addFirst", "addLast", "put", "putAll", "putIfAbsent", "set", "remove", "removeAll", "removeIf", "removeFirst", "removeLast", "retainAll", "clear", "sort", "replaceAll", "replace", "push", "pop", "poll", "pollFirst", "pollLast", "offer", "offerFirst", "offerLast", "merge", "compute", "computeIfAbsent", "computeIfPresent", "incrementAndGet", "getAndIncrement", "decrementAndGet", "getAndDecrement", "addAndGet", "getAndAdd", "getAndSet", "updateAndGet", "lazySet", "append", "insert", "deleteCharAt", "delete", "reverse", "setCharAt", "setLength", "setValue", "next"]),
        {**dict.fromkeys(("sort", "fill", "setAll", "reverse", "shuffle", "swap", "addAll", "rotate", "parallelSort", "parallelPrefix"), 0), "arraycopy": 2},
        frozenset({"Math", "Integer", "Long", "Double", "Float", "Character", "Boolean", "String", "Objects", "BigInteger", "BigDecimal"}),
        frozenset(["ArrayList", "LinkedList", "HashMap", "LinkedHashMap", "TreeMap", "HashSet", "LinkedHashSet", "TreeSet", "ArrayDeque", "PriorityQueue", "StringBuilder", "String", "copyOf", "copyOfRange", "range", "rangeClosed", "stream", "toString", "nCopies", "emptyList", "emptyMap", "emptySet"]),
    ),
}  # fmt: skip


def levels_of(kind: str, language: str) -> int | None:
    """The level of a type: 2 for `[][]int` and `Map<String, List<Integer>>`; None for other types."""
    kind = kind.removeprefix("final ").strip()
    if re.fullmatch(GO_SCALAR if language == "go" else JAVA_SCALAR, kind):
        return 0
    outer = re.fullmatch(
        rf"(?:\[\w*\]|map\[{GO_SCALAR}\]|\.\.\.)(.+)"
        if language == "go"
        else rf"\.\.\.(.+)|(.+)\[\s*\]|\w+<\s*(?:{JAVA_SCALAR}\s*,\s*)?(.+)>",
        kind,
    )
    inner = levels_of(next(filter(None, outer.groups())), language) if outer else None
    return None if inner is None else inner + 1
