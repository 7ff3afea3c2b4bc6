"""What a changed body may use in Go, C++, Rust and Java: names of the function, of its file, and of harmless parts of the library.

State is held by the types where they can (C++, Rust), else by aliases.py. A function whose own code already changes what lies outside
of it is refused: comparisons of results cannot see such changes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mftcoder.assistant.checks.aliases import outer_writes
from mftcoder.assistant.checks.names import foreign
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.mining.languages.functions import Found, found_functions
from mftcoder.curation.mining.languages.trees import text_of, tokens, walk
from mftcoder.curation.syntax import Node, parse
from mftcoder.registry import words


@dataclass(frozen=True)
class Powers:
    """What a language's bodies may gain, and what they may not."""

    harmless: frozenset[str]
    """Names of the library that compute and touch nothing else."""
    statements: frozenset[str]
    """Nodes that the old body must have, if the new one has them."""
    reaching: frozenset[str] = frozenset()
    """Names that the old body must have, whatever the rest of the file uses."""


_GO = (
    "int int8 int16 int32 int64 uint uint8 uint16 uint32 uint64 uintptr float32 float64 complex64 complex128 string bool byte rune error any "
    "true false nil iota len cap make new append copy delete min max panic complex real imag _ strings strconv math bits sort unicode utf8 "
    "slices maps cmp errors list heap"
)
_CPP = (
    "std static_cast vector string map set pair tuple deque queue stack list array unordered_map unordered_set multiset multimap priority_queue greater "
    "less function size_t ptrdiff_t int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t numeric_limits max min sort "
    "stable_sort reverse unique find find_if count count_if accumulate iota swap abs fabs sqrt pow floor ceil round log log2 log10 exp fmod "
    "gcd transform copy fill all_of any_of none_of lower_bound upper_bound binary_search next_permutation max_element min_element "
    "minmax_element begin end rbegin rend distance advance next prev move make_pair make_tuple get tie to_string stoi stol stoll stod "
    "isalpha isdigit isalnum isspace isupper islower tolower toupper ispunct back_inserter inserter istringstream ostringstream "
    "stringstream getline npos first second value_type invalid_argument out_of_range runtime_error logic_error domain_error "
    "overflow_error partial_sum inner_product adjacent_find equal nth_element partition remove remove_if erase replace rotate const_iterator "
    "iterator size_type NULL INT_MAX INT_MIN LONG_MAX LLONG_MAX plus minus multiplies emplace mismatch search sin cos tan atan2 hypot trunc cbegin cend"
)
_RUST = (
    "std core alloc collections cmp iter mem str string vec char option result Vec String Option Some None Result Ok Err HashMap HashSet "
    "BTreeMap BTreeSet VecDeque BinaryHeap Ordering Reverse Box Iterator IntoIterator FromIterator Default Clone Copy PartialEq Eq PartialOrd Ord "
    "Self usize isize u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64 bool min max swap replace take once repeat zip successors from_fn "
    "new with_capacity from from_iter from_str from_u32 from_digit from_utf8 MAX MIN INFINITY NEG_INFINITY EPSILON NAN consts PI vec "
    "matches format panic unreachable assert debug_assert write Fn FnMut FnOnce Less Equal Greater default parse abs pow sqrt sum "
    "is_alphabetic is_numeric is_alphanumeric is_uppercase is_lowercase is_whitespace is_ascii_digit len is_empty to_string to_owned Wrapping "
    "num empty Ascii is_some is_none unwrap_or chars bytes _"
)
_JAVA = (
    "Math Integer Long Double Float Boolean Character String StringBuilder Byte Short Number Object Objects Optional OptionalInt List ArrayList "
    "LinkedList Map HashMap LinkedHashMap TreeMap Set HashSet LinkedHashSet TreeSet Deque ArrayDeque Queue PriorityQueue Arrays Collections "
    "Collection Iterator Comparator Stream IntStream LongStream DoubleStream Collectors BigInteger BigDecimal IllegalArgumentException "
    "IllegalStateException ArithmeticException IndexOutOfBoundsException NumberFormatException NullPointerException NoSuchElementException "
    "UnsupportedOperationException RuntimeException Entry AbstractMap SimpleEntry BitSet Function BiFunction IntPredicate Predicate "
    "var UnaryOperator BinaryOperator IntUnaryOperator IntBinaryOperator Supplier Map.Entry MAX_VALUE MIN_VALUE PI E length"
)
_ENDING = "exit _exit _Exit quick_exit abort terminate system popen execl execv fork kill raise longjmp halt Exec Exit Runtime getRuntime"
_JAVA_REACHING = "random getClass forName invoke setAccessible newInstance loadClass getDeclaredMethod getMethod getDeclaredField currentThread load loadLibrary setOut setErr exec addShutdownHook wait notify notifyAll"


POWERS: Mapping[str, Powers] = {
    "go": Powers(
        words(_GO),
        frozenset({"defer_statement", "go_statement", "goto_statement", "select_statement", "send_statement"}),
        words(_ENDING, "recover Goexit unsafe reflect"),
    ),
    "cpp": Powers(
        words(_CPP),
        words(
            "try_statement catch_clause goto_statement gnu_asm_expression new_expression delete_expression preproc_include preproc_def",
            "preproc_function_def preproc_call preproc_if preproc_ifdef preproc_using throw_specifier storage_class_specifier attribute_declaration",
        ),
        words(_ENDING, "const_cast reinterpret_cast signal setjmp atexit at_quick_exit set_terminate"),
    ),
    "rust": Powers(
        words(_RUST),
        words(
            "unsafe_block impl_item macro_definition mod_item static_item foreign_mod_item attribute_item inner_attribute_item",
            "extern_crate_declaration trait_item async_block try_block",
        ),
        words(_ENDING, "process catch_unwind panic_any set_hook forget transmute leak"),
    ),
    "java": Powers(
        words(_JAVA),
        words(
            "try_statement try_with_resources_statement catch_clause class_declaration class_body synchronized_statement",
            "class_literal assert_statement",
        ),
        words(_ENDING, _JAVA_REACHING),
    ),
}
_SWALLOWING = words("defer_statement try_statement catch_clause try_with_resources_statement try_block")


def refuse_gains(function: FunctionText, old: Found, new: Found) -> None:
    """Refuse a body that can do more than the old one and its file, that changes state, or that swallows errors."""
    language = function.file.language
    rules = POWERS[language]
    had = {node.type for node in walk(old.body)} | {text_of(node) for node in walk(old.body) if not node.child_count}
    gained = {node.type for node in walk(new.body) if node.type in rules.statements} - had
    swallowed = sorted(gained & _SWALLOWING) or ["catch_unwind"] * ("catch_unwind" in _leaves(new) - had)
    swallowed = swallowed or ["recover"] * (language == "go" and "recover" in _leaves(new) - had)
    if swallowed:
        raise RefusedAnswer(
            "swallows_failures", f"The code catches errors ({swallowed[0]}), which the old code does not do."
        )
    others = list(found_functions(_root(function), language))
    gained |= ((_leaves(new) | _reached(new, others)) & rules.reaching) - had - _reached(old, others)
    gained |= set(_new_names(function, new, rules))
    if language == "cpp":
        gained |= {text for text in _tricks(function, new) if text not in text_of(old.body)}
    if gained:
        raise RefusedAnswer(
            "new_power", f"The code uses {', '.join(sorted(gained)[:5])}, which the old code or its file did not use."
        )
    changed = sorted(state_changes(function, new))
    if changed:
        raise RefusedAnswer("outside", f"The code changes or reads what it did not make: {', '.join(changed[:5])}.")


def _leaves(found: Found) -> set[str]:
    return {text_of(node) for node in walk(found.body) if not node.child_count}


def _new_names(function: FunctionText, new: Found, rules: Powers) -> Iterator[str]:
    """Names that neither the function declares, nor the file has, nor are harmless; of those of the file only uses that it has."""
    language, root = function.file.language, _root(function)
    known = {text_of(node) for node in walk(root) if node.type.endswith("identifier")}
    used = f" {_spelled([root])} "
    for name in foreign(new.node, language):
        text, parent = text_of(name), name.parent
        is_own_class = bool(new.owner) and text == new.owner
        if name.start_byte < new.body.start_byte or parent is None or is_own_class or _is_member(name, parent):
            continue  # a method or field of a value: those that reach out have names that are looked for
        if text not in rules.harmless and text not in known:
            yield text
        elif parent.type in _ACCESSES and text not in rules.harmless and f" {_member(parent)} " not in used:
            yield _member(parent).replace(" ", "")


_ACCESSES = words("selector_expression method_invocation field_access qualified_identifier scoped_identifier")


def _member(access: Node) -> str:
    """`os . Exit`: of a method's call the object and the name."""
    if access.type != "method_invocation":
        return _spelled([access])
    owner, name = access.child_by_field_name("object"), access.child_by_field_name("name")
    return f"{_spelled([owner])} . {text_of(name)}" if owner is not None else text_of(name)


def _spelled(nodes: list[Node]) -> str:
    """The tokens, with a space between them."""
    return b" ".join(tokens([inner for node in nodes for inner in walk(node)])).decode(errors="replace")


def _is_member(name: Node, parent: Node) -> bool:
    """Whether it is the `b` of `a.b`, where `a` is a value."""
    if parent.type == "method_invocation":
        return parent.child_by_field_name("name") == name and parent.child_by_field_name("object") is not None
    return parent.type == "field_access" and parent.child_by_field_name("field") == name


def _tricks(function: FunctionText, new: Found) -> Iterator[str]:
    """C++: casts and names of types that could take `const` away, and functions that the body declares and calls."""
    declared, called = set(), set()
    for node in walk(new.body):
        field = node.child_by_field_name
        kind = " ".join(text_of(field("type")).split())
        is_cast = node.type == "cast_expression" and not _NUMBERS.fullmatch(kind)
        if is_cast or (node.type in _ALIASES and re.search(_REFERS, text_of(node))):
            yield text_of(node)
        elif node.type == "function_declarator":
            declared.add(text_of(field("declarator")))
        elif node.type == "call_expression":
            called.add(text_of(field("function")))
    yield from declared & called
    names = {text_of(node) for node in walk(new.body) if node.type in ("identifier", "type_identifier")}
    for node in walk(_root(function)):
        if node.type in _ALIASES and re.search(_REFERS, text_of(node)):
            targets = [*node.children_by_field_name("name"), *node.children_by_field_name("declarator")]
            yield from {text_of(one) for target in targets for one in walk(target) if not one.child_count} & names


_ALIASES = frozenset({"alias_declaration", "type_definition"})
_REFERS = r"[*&]|\b(pointer|reference|decltype)\b"
_NUMBERS = re.compile(
    r"((unsigned|signed|long|short|int|char|double|float|bool)( (?!$)|$))+|(std::)?(u?int(8|16|32|64)_t|size_t|ptrdiff_t|string)"
)


def _root(function: FunctionText) -> Node:
    tree = parse(function.file.text, function.file.language)
    assert tree is not None  # head_of read it
    return tree.root_node


def state_changes(function: FunctionText, found: Found) -> set[str]:
    """What the body changes that it did not make, and the changing state of the file that it uses, by name."""
    language, root = function.file.language, _root(function)
    others = list(found_functions(root, language))
    if language in ("go", "java"):
        return outer_writes(found, others, root, language)
    handed = set(re.findall(_CHANGEABLE, _head(found))) if language == "rust" else set(_changing_parameters(found))
    kept = {"a static variable" for node in walk(found.body) if node.type == "storage_class_specifier"}
    unsafe = {"unsafe code" for node in walk(found.body) if node.type == "unsafe_block"}
    return handed | kept | unsafe | (_reached(found, others) & set(_changing_globals(root, language)))


_CHANGEABLE = r"&\s*(?:'\w+\s+)?mut\b|\*\s*mut\b|\b\w*(?:Cell|Mutex|RwLock|Atomic\w*)\b"


def _head(found: Found) -> str:
    return text_of(found.node)[: found.body.start_byte - found.node.start_byte]


def _changing_parameters(found: Found) -> Iterator[str]:
    """C++: parameters through which the caller's objects can be changed."""
    for node in walk(found.node):
        if node.start_byte >= found.body.start_byte:
            return
        if node.type in ("parameter_declaration", "optional_parameter_declaration"):
            text = text_of(node)
            if re.search(r"[&*]", text) and not re.match(r"\s*const\b[^*]*&|\s*[\w:<>, ]+\bconst\s*&", text):
                yield text


def _reached(found: Found, others: list[Found]) -> set[str]:
    """The names that a body uses, and those of the functions of the file that it calls, and so on."""
    seen, waiting = set[str](), [found.body]
    while waiting:
        names = {text_of(node) for node in walk(waiting.pop()) if not node.child_count and node.is_named} - seen
        seen |= names
        waiting += [one.body for one in others if one.name in names]
    return seen


def _changing_globals(root: Node, language: str) -> Iterator[str]:
    """Variables of a C++ or Rust file that are no constants."""
    if language == "rust":
        found = re.findall(r"\bstatic\s+(mut\s+|ref\s+)?(\w+)\s*:\s*([^=;]+)", text_of(root))
        changing = re.compile(r"Cell|Mutex|RwLock|Atomic|Once|Lazy")
        yield from (
            name for how, name, kind in found if how or changing.search(kind) or "thread_local" in text_of(root)
        )
        return
    for node in walk(root):
        inside = node.parent is not None and node.parent.type in ("translation_unit", "declaration_list")
        if node.type == "declaration" and inside and not re.search(r"\bconst(expr)?\b", text_of(node).split("=")[0]):
            targets = node.children_by_field_name("declarator")
            names = (next((one for one in walk(target) if one.type == "identifier"), None) for target in targets)
            functions = {target.start_byte for target in targets if target.type == "function_declarator"}
            yield from (text_of(one) for one in names if one is not None and one.start_byte not in functions)
