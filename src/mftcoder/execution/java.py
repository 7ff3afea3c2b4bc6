"""Java: javac and java of one JDK, without annotation processing.

The candidate and the tests are compiled apart, so the tests cannot be shadowed: each class of the library that they name is
imported by name, which goes before a class of the candidate's. What the candidate's methods return is rebuilt from the
library's own classes first (`MftPlain`), so a list of its own that equals everything equals nothing.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from mftcoder.execution.plan import MEMORY_MB, PROOF_DESCRIPTOR, Plan, Step
from mftcoder.execution.sandbox import Program
from mftcoder.execution.toolchains import Toolchain, cached, output_of

# Fast start: one compiler tier and the serial collector; short programs never earn the others back.
_VM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData")
_CLASSES = "classes"
_COMPILER_VM = tuple(f"-J{flag}" for flag in _VM)
_UTIL = "ArrayList Arrays Collections Comparator Deque HashMap HashSet Iterator LinkedHashMap LinkedList List Map Objects Optional Queue Random Scanner Set Stack TreeMap TreeSet Vector"
_LANG = "AssertionError Boolean Byte Character Double Exception Float Integer Iterable Long Math Number Object RuntimeException Short String StringBuilder System Throwable"
_HEADER = "import java.util.*;\nimport java.lang.*;\nimport java.util.stream.*;\nimport java.math.*;\nimport java.security.*;\n"
_IMPORT = re.compile(r"^[ \t]*import\s+(?:static\s+)?[\w.*]+;", re.MULTILINE)

_PLAIN = """
final class MftPlain {
    static int of(int x) { return x; } static long of(long x) { return x; } static double of(double x) { return x; }
    static float of(float x) { return x; } static boolean of(boolean x) { return x; } static char of(char x) { return x; }
    static short of(short x) { return x; } static byte of(byte x) { return x; }
    @SuppressWarnings("unchecked") static <T> T of(T x) { return (T) plain(x); }
    private static java.lang.Object plain(java.lang.Object x) {
        if (x == null) return null;
        if (x instanceof java.util.List) { var r = new java.util.ArrayList<java.lang.Object>(); for (var e : (java.util.List<?>) x) r.add(plain(e)); return r; }
        if (x instanceof java.util.Map) { var r = new java.util.LinkedHashMap<java.lang.Object, java.lang.Object>();
            for (var e : ((java.util.Map<?, ?>) x).entrySet()) r.put(plain(e.getKey()), plain(e.getValue())); return x instanceof java.util.HashMap ? new java.util.HashMap<>(r) : r; }
        if (x instanceof java.util.Set) { var r = new java.util.LinkedHashSet<java.lang.Object>(); for (var e : (java.util.Set<?>) x) r.add(plain(e)); return x instanceof java.util.HashSet ? new java.util.HashSet<>(r) : r; }
        if (x instanceof java.util.Optional) return ((java.util.Optional<?>) x).map(MftPlain::plain);
        if (x.getClass().isArray() || x.getClass().getName().startsWith("java.")) return x;
        return new java.lang.Object();
    }
}
"""


def plan(program: Program, key: str, toolchain: Toolchain) -> Plan:
    """Compile the candidate, then the tests against it, then run the tests' main."""
    javac, java = (toolchain.tools[tool] for tool in ("javac", "java"))
    options = ("-proc:none", "-nowarn", "-encoding", "UTF-8", "-d", _CLASSES)
    compiler = (javac, *_COMPILER_VM, f"-J-XX:SharedArchiveFile={toolchain.cache}/javac.jsa", *options)
    steps = (
        Step({"Solution.java": program.files["candidate"]}, (*compiler, "Solution.java")),
        Step(
            {"MftTests.java": _tests(program.files["tests"], key)},
            (*compiler, "-cp", _CLASSES, "MftTests.java"),
            keep=(_CLASSES,),
        ),
    )
    memory = (f"-Xmx{MEMORY_MB}m", "-XX:ActiveProcessorCount=2")
    return Plan(
        steps,
        (java, *_VM, *memory, "-Djava.io.tmpdir=.", "-cp", _CLASSES, "MftMain"),
        (_CLASSES,),
        key,
        overhead_mb=512,
        address_mb=6144,
    )


def _tests(tests: str, key: str) -> str:
    """The tests with library names pinned, answers made plain, and a main that writes the key behind theirs."""
    body = _IMPORT.sub("", tests).replace("public class Main", "class Main", 1)
    imports = "\n".join(_IMPORT.findall(tests))
    pinned = [
        f"import java.{room}.{name};"
        for room, names in (("util", _UTIL), ("lang", _LANG))
        for name in names.split()
        if re.search(rf"\b{name}\b", body)
    ]
    main = (
        "final class MftMain {\n    public static void main(java.lang.String[] args) throws java.lang.Throwable {\n        Main.main(args);\n"
        f'        try (var out = new java.io.FileOutputStream("/proc/self/fd/{PROOF_DESCRIPTOR}")) {{ out.write("{key}".getBytes()); }}\n    }}\n}}\n'
    )
    return _HEADER + imports + "\n" + "\n".join(pinned) + "\n" + _with_plain_answers(body) + _PLAIN + main


def _with_plain_answers(body: str) -> str:
    """`s.method(arguments)` -> `MftPlain.of(s.method(arguments))`, wherever it stands."""
    out, position = [], 0
    for match in re.finditer(r"\b(?:s|Solution|[A-Z]\w*)\.(?=\w+\()", body):
        end = _call_end(body, body.index("(", match.end()))
        if match.start() < position or end is None or not _is_candidates(match.group(), body):
            continue
        out += [body[position : match.start()], "MftPlain.of(", body[match.start() : end], ")"]
        position = end
    return "".join([*out, body[position:]])


def _is_candidates(receiver: str, body: str) -> bool:
    """`s.` is always the candidate's object; a class is if it is none of the library and none the tests define."""
    name = receiver[:-1]
    return name == "s" or (
        name not in f"{_UTIL} {_LANG} Collectors BigInteger BigDecimal Stream IntStream Pattern".split()
        and not re.search(rf"\b(?:class|interface|enum)\s+{name}\b", body)
    )


def _call_end(body: str, opening: int) -> int | None:
    """The position behind the parenthesis that closes the one at `opening`; texts and characters are passed over."""
    depth = 0
    for match in re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'|[()]').finditer(body, opening):
        depth += {"(": 1, ")": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    return None


def prepare(tools: Mapping[str, str]) -> Toolchain:
    """An archive of the compiler's loaded classes, which halves its start."""
    home = str(Path(tools["javac"]).resolve().parent.parent)
    version = output_of(tools["javac"], "-version").strip()

    def build(folder: Path) -> None:
        (folder / "A.java").write_text(
            "import java.util.*; class A { List<Integer> f(int x) { return Arrays.asList(x); } }"
        )
        output_of(
            tools["javac"],
            f"-J-XX:ArchiveClassesAtExit={folder}/javac.jsa",
            *_COMPILER_VM,
            "-proc:none",
            "-d",
            str(folder),
            str(folder / "A.java"),
        )

    cache = cached("java", version + home + _PLAIN, build)
    return Toolchain("java", tools, cache, (cache, home, "/etc/java-17-openjdk", "/etc/java-21-openjdk"), version)
