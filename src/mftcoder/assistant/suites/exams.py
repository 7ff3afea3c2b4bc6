"""Tests in Go, C++, Rust and Java: pairs of a call and its value, taken from whatever the model wrote, and run by the exam's judge.

Only comparisons of one call with plain values are taken, and only they run. So it does not matter what else stands in an answer.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mftcoder.assistant.checks.replies import refuse_hidden_code
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.mining.languages.functions import Found, found_functions
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import Node, parse
from mftcoder.errors import ConfigError
from mftcoder.registry import words

MOST_PAIRS = 12
CLAIM = "a claim does not hold"
_PUNCTUATION = frozenset("()[]{},:;.<>&-!\"'`") | {"::"}
_LITERAL = re.compile(r"string|char|rune|escape_sequence|quote")
_NUMBER = re.compile(r"-?[0-9][\w.]*")


@dataclass(frozen=True)
class Exam:
    """How one language writes and runs its tests."""

    example: str
    """The form that the model is asked for."""
    words: frozenset[str]
    """Names that a plain value may hold."""
    claim: str
    """A comparison in the program's tests."""
    nothing: str
    """What stands there without any: it only shows whether the code can be built."""
    program: str
    """The program's tests around the claims."""
    is_claim: re.Pattern[str]
    """What the judge says where a comparison fails; other words are an error of the code."""
    case: str
    """A comparison in a file of tests."""
    file: str
    """The file around the cases."""
    attempt: str
    """A statement that makes a call, whatever comes of it."""
    claims: str = "{claims}"
    """How several claims stand together."""
    between: str = ""
    """What stands between two of them."""


@dataclass(frozen=True)
class Pair:
    """A call and the value that it gives."""

    call: str
    value: str

    @property
    def run(self) -> str:
        return json.dumps([self.call, self.value])


@dataclass(frozen=True)
class Head:
    """A function's name, and its text up to the brace of its body."""

    name: str
    text: str


CALLS_ONLY = "calls:"
"""Begins tests that only make calls, one a line, and compare nothing."""


def pairs_of_runs(lines: str) -> list[Pair]:
    """The pairs of lines."""
    return [Pair(*json.loads(line)) for line in lines.splitlines() if line]


def pairs(function: FunctionText, code: str, most: int = MOST_PAIRS) -> list[Pair]:
    """The comparisons in tests, at most so many. RefusedAnswer if there is none."""
    language = function.file.language
    refuse_hidden_code(code, language)
    tree = parse(code, language)
    found = dict.fromkeys(_pairs_below(tree.root_node, function.name, language) if tree is not None else ())
    if not found:
        form = EXAMS[language].example.format(name=function.name)
        raise RefusedAnswer("no_tests", f"No test compares a call of {function.name} with a plain value: {form}")
    return list(found)[:most]


def _pairs_below(root: Node, name: str, language: str) -> Iterator[Pair]:
    for node in walk(root):
        if node.type == "token_tree" and language == "rust":  # the arguments of a macro are parsed as those of a call
            inner = parse(f"fn mft() {{ mft({text_of(node)[1:-1]}); }}", language)
            if inner is not None and not inner.root_node.has_error and f"{name}(" in text_of(node):
                yield from _pairs_below(inner.root_node, name, language)
        if not _calls(node, name) or node.parent is None:
            continue
        side = node.parent.type == "binary_expression" and text_of(node.parent.child_by_field_name("operator")) == "=="
        given = node.child_by_field_name("arguments")
        if (side or node.parent.type in ("argument_list", "arguments")) and _is_plain(given, language):
            others = [one for one in node.parent.named_children if one != node and _is_plain(one, language)]
            if others:
                yield Pair(f"{name}{text_of(given)}", text_of(others[0]))


def _calls(node: Node, name: str) -> bool:
    """Whether it is a call of the function. A static method of Java may be called without its class."""
    if node.type == "method_invocation":
        owner, _, method = name.rpartition(".")
        return text_of(node.child_by_field_name("name")) == method and text_of(node.child_by_field_name("object")) in (
            "",
            owner,
        )
    return node.type == "call_expression" and text_of(node.child_by_field_name("function")) == name


def _is_plain(node: Node | None, language: str) -> bool:
    """Whether it is made of numbers, texts and known names only."""
    words = EXAMS[language].words
    for inner in walk(node) if node is not None else ():
        text = text_of(inner)
        is_text = inner.is_named and _LITERAL.search(inner.type) is not None
        if not inner.child_count and not (is_text or text in _PUNCTUATION or text in words or _NUMBER.fullmatch(text)):
            return False
    return node is not None


def head_of(function: FunctionText) -> Head:
    """The head of the function. ConfigError for what the judge cannot call: methods, nested and generic functions."""
    file, language = function.file, function.file.language
    tree = parse(file.text, language)
    if tree is None or tree.root_node.has_error:
        raise ConfigError(f"{file.name}: does not parse as {title_of(language)}. Correct the file first")
    own: list[Found] = [
        one
        for one in found_functions(tree.root_node, language)
        if function.name in (one.name, f"{one.owner}.{one.name}")
        and function.first <= one.node.start_point.row < function.end
    ]
    is_callable = len(own) == 1 and own[0].node.type in _TOP and _is_reached(own[0].node, tree.root_node)
    if not is_callable or own[0].node.child_by_field_name("type_parameters") is not None:
        kind = "static methods of a class at" if language == "java" else "functions at"
        raise ConfigError(
            f"{function.place}: only plain {kind} the top level of a file can be tested in {title_of(language)}"
        )
    data, [found] = file.text.encode(), own
    text = data[found.node.start_byte : found.body.start_byte].decode() + "{\n"
    return Head(function.name, f"class {found.owner} {{\n{text}" if language == "java" else text)


def _is_reached(node: Node, root: Node) -> bool:
    """Whether it stands at the top level; in Java, in a class there, static and not private."""
    if node.type != "method_declaration":
        return node.parent == root
    words = next((text_of(one).split() for one in node.children if one.type == "modifiers"), [])
    owner = node.parent.parent if node.parent is not None else None
    return (
        owner is not None
        and owner.type == "class_declaration"
        and owner.parent == root
        and "static" in words
        and "private" not in words
    )


_TOP = frozenset({"function_declaration", "function_definition", "function_item", "method_declaration"})


def sources(language: str, head: Head, code: str, tests: str) -> dict[str, str]:
    """The program's files for tests: lines of pairs, or calls that compare nothing."""
    exam = EXAMS[language]
    name = f"Mft{head.name}" if language == "go" else head.name  # Go's judge calls exported names only
    is_open = tests.startswith(CALLS_ONLY)
    given = [] if is_open else pairs_of_runs(tests)
    calls = tests.splitlines()[1:] if is_open else []
    attempts = "".join(exam.attempt.format(call=_renamed(call, name)) for call in calls)
    claims = exam.between.join(exam.claim.format(call=_renamed(pair.call, name), value=pair.value) for pair in given)
    return {
        "candidate": code,
        "declaration": head.text,
        "entry_point": name.rpartition(".")[2],
        **(_go(head, code, name) if language == "go" else {}),
        **({"candidate": _not_public(code)} if language == "java" else {}),
        "tests": exam.program.format(claims=attempts + exam.claims.format(claims=claims or exam.nothing)),
        **({"record": "answers"} if is_open else {}),
    }


def _renamed(call: str, name: str) -> str:
    return name + call[call.index("(") :]


def _go(head: Head, code: str, name: str) -> dict[str, str]:
    return {
        "candidate": f"{code}\n\nvar {name} = {head.name}\n",
        "setup": 'import (\n"testing"\n"github.com/stretchr/testify/assert"\n)\n',
        "declaration": re.sub(r"^func\s+\w+", f"func {name}", head.text),
    }


def _not_public(code: str) -> str:
    """Java's code without its package, and its classes beside the public one of the tests."""
    alone = re.sub(r"^\s*package\s[^;]*;", "", code, flags=re.MULTILINE)
    return re.sub(r"^public\s+(?=[\w\s]*\bclass\b)", "", alone, flags=re.MULTILINE)


def file_of(function: FunctionText, given: Sequence[Pair]) -> str:
    """The pairs as a file of tests."""
    exam, (owner, _, name) = EXAMS[function.file.language], function.name.rpartition(".")
    cases = (
        exam.case.format(
            call=pair.call,
            value=pair.value,
            said=json.dumps(f"{pair.call.replace('%', '%%')} gives %v", ensure_ascii=False),
        )
        for pair in given
    )
    return exam.file.format(
        package=_package(function.file.text, function.file.language),
        source=function.file.path.name,
        owner=owner,
        name=name,
        title=function.name[:1].upper() + function.name[1:],
        cases="".join(cases),
    )


def _package(text: str, language: str) -> str:
    if language == "java":
        found = re.search(r"^\s*package\s[^;]*;", text, re.MULTILINE)
        return f"{found[0].strip()}\n\n" if found else ""
    found = re.search(r"^package\s+\w+", text, re.MULTILINE)
    return f"{found[0] if found else 'package main'}\n\n"


_TYPES = "int int8 int16 int32 int64 uint uint8 uint16 uint32 uint64 float32 float64 string bool byte rune map true false nil"
_RUST_WORDS = "true false vec Some None Ok Err String from to_string to_owned into HashMap BTreeMap HashSet HashMap from collections std"
_CPP_WORDS = "true false std vector string map set pair tuple int long char double float bool unsigned nullptr"
_JAVA_WORDS = (
    "true false null new int long double float char boolean byte short String Integer Long Double Boolean Character List Map Set Arrays "
    "of asList Optional empty"
)
EXAMS: Mapping[str, Exam] = {
    "java": Exam(
        "assertEquals(3, {name}(1, 2));",
        words(_JAVA_WORDS),
        "Objects.deepEquals({call}, {value})",
        "true",
        "public class Main {{\n    public static void main(String[] args) {{\n{claims}        if (correct.contains(false)) {{\n"
        "            throw new AssertionError();\n        }}\n    }}\n}}\n",
        re.compile(r"java\.lang\.AssertionError\Z"),
        "        assertTrue(Objects.deepEquals({call}, {value}));\n",
        "{package}import static org.junit.jupiter.api.Assertions.assertTrue;\n\nimport java.util.*;\n\n"
        "import org.junit.jupiter.api.Test;\n\nclass {owner}Test {{\n    @Test\n    void {name}() {{\n{cases}    }}\n}}\n",
        "        try {{ {call}; }} catch (Throwable ended) {{ }}\n",
        "        List<Boolean> correct = Arrays.asList({claims});\n",
        ", ",
    ),
    "go": Exam(
        "assert.Equal(t, 3, {name}(1, 2))",
        words(_TYPES),
        "\tassert.Equal({value}, {call})\n",
        "\tassert.Equal(1, 1)\n",
        "func TestMft(t *testing.T) {{\n\tassert := assert.New(t)\n{claims}}}\n",
        re.compile(r"\Z"),
        "\tif got := {call}; !reflect.DeepEqual(got, {value}) {{\n\t\tt.Errorf({said}, got)\n\t}}\n",
        '{package}import (\n\t"reflect"\n\t"testing"\n)\n\nfunc Test{title}(t *testing.T) {{\n{cases}}}\n',
        "\tfunc() {{ defer func() {{ recover() }}(); {call} }}()\n",
    ),
    "cpp": Exam(
        "assert({name}(1, 2) == 3);",
        words(_CPP_WORDS),
        "    assert({call} == {value});\n",
        "    assert(1 == 1);\n",
        "int main() {{\n{claims}}}\n",
        re.compile(r"line \d+: "),
        "    assert(({call} == {value}));\n",
        '#undef NDEBUG\n#include <cassert>\n\n#include "{source}"\n\nint main() {{\n{cases}}}\n',
        "    try {{ {call}; }} catch (...) {{ }}\n",
    ),
    "rust": Exam(
        "assert_eq!({name}(1, 2), 3);",
        words(_RUST_WORDS),
        f'        assert!({{call}} == {{value}}, "{CLAIM}");\n',
        "        assert!(1 == 1);\n",
        "#[cfg(test)]\nmod tests {{\n    use super::*;\n    #[test]\n    fn test_mft() {{\n{claims}    }}\n}}\n",
        re.compile(CLAIM),
        "        assert_eq!({call}, {value});\n",
        "#[cfg(test)]\nmod tests_of_{name} {{\n    use super::*;\n\n    #[test]\n    fn gives_the_known_values() {{\n{cases}    }}\n}}\n",
        "        let _ = std::panic::catch_unwind(|| {{ let _ = {call}; }});\n",
    ),
}
