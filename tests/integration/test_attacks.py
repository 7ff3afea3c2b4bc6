"""Every file of tests/attacks against every sandbox level of this machine: none passes, none leaks, none lingers."""

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mftcoder.errors import ExecutionError
from mftcoder.execution.isolation import kernel
from mftcoder.execution.languages import LANGUAGES, prepare
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.sandbox import Limits, Program

slow = pytest.mark.slow(reason="each attack costs its whole time limit, or a compiler")
ROOT = Path(__file__).parents[1] / "attacks"
FILES = sorted(path for path in ROOT.glob("*/*") if path.is_file())
LIMITS = Limits(seconds=3.0, memory_mb=768, compile_seconds=20.0)
NONCE = secrets.token_hex(4)

TWICE = {
    "python": f"def check_twice_is_right_{NONCE}(twice):\n    assert twice([1, 2]) == [2, 4]\n    assert twice([]) == []\n"
    f"    assert twice([-3]) == [-6]\ncheck_twice_is_right_{NONCE}(twice)\n",
    "js": "const testTwice = () => {\n  console.assert(JSON.stringify(twice([1, 2])) === JSON.stringify([2, 4]))\n"
    "  console.assert(JSON.stringify(twice([-3])) === JSON.stringify([-6]))\n}\n\ntestTwice()\n",
    "cpp": "#undef NDEBUG\n#include<assert.h>\nbool issame(vector<int> a,vector<int>b){\n if (a.size()!=b.size()) return false;\n"
    " for (int i=0;i<a.size();i++)\n {\n if (a[i]!=b[i]) return false;\n }\n return true;\n}\nint main(){\n"
    "    assert (issame(twice({1, 2}) , {2, 4}));\n    assert (twice({-3}) == vector<int>{-6});\n}\n",
    "java": "public class Main {\n    public static void main(String[] args) {\n        Solution s = new Solution();\n"
    "        List<Boolean> correct = Arrays.asList(\n                s.twice(new ArrayList<>(Arrays.asList(1, 2))).equals(Arrays.asList(2, 4)),\n"
    "                Objects.equals(s.twice(new ArrayList<>(Arrays.asList(-3))), Arrays.asList(-6))\n        );\n"
    "        if (correct.contains(false)) {\n            throw new AssertionError();\n        }\n    }\n}\n",
    "go": "func TestTwice(t *testing.T) {\n    assert := assert.New(t)\n    assert.Equal([]int{2, 4}, Twice([]int{1, 2}))\n"
    "    assert.Equal(true, Twice([]int{-3})[0] == -6)\n}\n",
    "rust": "#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn test_twice() {\n"
    "        assert_eq!(twice(vec![1, 2]), vec![2, 4]);\n        assert!(twice(vec![-3]) == vec![-6]);\n    }\n}\n",
}
EVEN = {
    "rust": "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn test_even() {\n"
    "        assert_eq!(even(2), true);\n        assert!(even(3) == false);\n    }\n}\n",
}
KIND = {
    "rust": "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn test_kind() {\n"
    "        assert_eq!(kind(2), Kind::Small(2));\n        assert_eq!(kind(300), Kind::Large(300));\n    }\n}\n",
}
HALF = {  # comparisons that a number which is none gets through, as those of HumanEval's C++ and Java do
    "python": "assert not abs(half(3.0) - 1.5) > 1e-6\nassert not abs(half(1.0) - 0.5) > 1e-6\n",
    "js": "console.assert(!(Math.abs(half(3.0) - 1.5) > 1e-6))\nconsole.assert(!(Math.abs(half(1.0) - 0.5) > 1e-6))\n",
    "cpp": "bool issame(vector<float> a,vector<float>b){\n if (a.size()!=b.size()) return false;\n for (int i=0;i<a.size();i++)\n"
    " {\n if (abs(a[i]-b[i])>1e-4) return false;\n }\n return true;\n}\nint main(){\n"
    "    assert (issame({half(3.0)}, {1.5}));\n    assert (issame({half(1.0)}, {0.5}));\n}\n",
    "java": "public class Main {\n    public static void main(String[] args) {\n        Solution s = new Solution();\n"
    "        if (Math.abs(s.half(3.0) - 1.5) > 1e-6) {\n            throw new AssertionError();\n        }\n    }\n}\n",
    "go": "func TestHalf(t *testing.T) {\n    assert := assert.New(t)\n    assert.Equal(false, math.Abs(Half(3.0)-1.5) > 1e-6)\n}\n",
    "rust": "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn test_half() {\n"
    "        assert!(!((half(3.0) - 1.5).abs() > 1e-6));\n    }\n}\n",
}
TESTS = {"twice": TWICE, "even": EVEN, "kind": KIND, "half": HALF}
DECLARATIONS = {
    ("twice", "cpp"): "#include<vector>\nusing namespace std;\nvector<int> twice(vector<int> xs){\n",
    ("twice", "go"): "func Twice(xs []int) []int {\n",
    ("twice", "java"): "import java.util.*;\nclass Solution {\n    public List<Integer> twice(List<Integer> xs) {\n",
    ("twice", "rust"): "\nfn twice(xs: Vec<i32>) -> Vec<i32> {\n",
    ("even", "rust"): "\nfn even(n: i32) -> bool {\n",
    ("kind", "rust"): "\nfn kind(n: i32) -> Kind {\n",
    ("half", "cpp"): "float half(float x){\n",
    ("half", "go"): "func Half(x float64) float64 {\n",
    ("half", "java"): "class Solution {\n    public double half(double x) {\n",
    ("half", "rust"): "\nfn half(x: f64) -> f64 {\n",
}
TYPES = {"kind": "#[derive(Debug, PartialEq)]\npub enum Kind {\n    Small(i32),\n    Large(i32),\n}\n"}


def level_or_skip(level: str, languages: tuple[str, ...]) -> Pool:
    try:
        return Pool(level, workers=2, toolchains={name: prepare(name) for name in languages if name != "python"})
    except ExecutionError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What attacks try to reach: a secret file, a server, abstract sockets, a variable of the environment."""
    secret = tmp_path_factory.mktemp("secrets") / "secret"
    secret.write_text("42")
    os.environ["MFT_ATTACK_SECRET"] = "42"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        port = server.getsockname()[1]
        datagrams.bind(f"\0mft-attack-datagram-{port}")
        abstract.bind(f"\0mft-attack-{port}")
        abstract.listen()
        threading.Thread(target=accept_all, args=(server,), daemon=True).start()
        yield {
            "@CANARY@": str(secret),
            "@PORT@": str(port),
            "@HOME@": str(Path.home()),
            "@REPOSITORY@": str(ROOT.parents[1]),
        }
    del os.environ["MFT_ATTACK_SECRET"]


def accept_all(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def header(path: Path) -> dict[str, str]:
    """`// expected: failed|compile_error; problem: even` as a dict."""
    parts = path.read_text().splitlines()[0].lstrip("/# ").split(";")
    return dict(part.strip().split(": ", 1) for part in parts)


def program(path: Path, bait: dict[str, str]) -> Program:
    language, source = path.parent.name, path.read_text()
    for placeholder, value in bait.items():
        source = source.replace(placeholder, value)
    problem = header(path).get("problem", "twice")
    files = {
        "candidate": source,
        "tests": TESTS[problem][language],
        "entry_point": problem.capitalize() if language == "go" else problem,
        "declaration": DECLARATIONS.get((problem, language), ""),
        "types": TYPES.get(problem, ""),
        "setup": 'package main\n\nimport (\n    "testing"\n    "math"\n    "github.com/stretchr/testify/assert"\n)\n',
        "helpers": "",
    }
    return Program(language, files)


@contextmanager
def no_process_left() -> Iterator[None]:
    """Orphans of this block become children of this process, so that none is missed and none of another pool is taken for ours."""
    before = set(psutil.Process().children(recursive=True))
    kernel.adopt_orphans()
    try:
        yield
        _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=30)
        assert not alive
    finally:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 0)


@pytest.fixture(scope="module", params=["namespaces", "process"])
def results(request: pytest.FixtureRequest, bait: dict[str, str]) -> dict[Path, str]:
    """Every attack's end at one level; run together, so that they may also try to hurt each other."""
    available = tuple(name for name, row in LANGUAGES.items() if not row.missing())
    ends: dict[Path, str] = {}
    files = [path for path in FILES if path.parent.name in available]
    with no_process_left(), level_or_skip(request.param, available) as pool:
        folder = pool.folder
        for key, result in pool.run(((str(path), program(path, bait)) for path in files), LIMITS):
            ends[Path(key)] = f"{result.status}: {result.stderr[:300]}"
    assert not folder.exists()
    return ends


EXITS = {
    "cpp": "exit_in_call",
    "go": "syscall_exit",
    "java": "halt",
    "js": "exit_in_call",
    "python": "exit_in_call",
    "rust": "exit",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_honest_answer_passes_and_one_that_exits_does_not(language: str, bait: dict[str, str]) -> None:
    """The one test of each language in `make test`; the slow ones have all attacks at both levels."""
    if LANGUAGES[language].missing():
        pytest.skip(f"{language}: {', '.join(LANGUAGES[language].missing())} not found")
    files = [path for path in FILES if path.parent.name == language and path.stem in ("honest", EXITS[language])]
    with open_pool("auto", 1, [language]) as pool:
        ends = dict(pool.run(((path.stem, program(path, bait)) for path in files), LIMITS))
    assert {name: end.status for name, end in ends.items()} == {"honest": "passed", EXITS[language]: "failed"}, ends


@slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_attack_ends_as_its_first_line_says(path: Path, results: dict[Path, str]) -> None:
    if path not in results:
        pytest.skip(f"{path.parent.name}: {', '.join(LANGUAGES[path.parent.name].missing())} not found")
    assert results[path].partition(":")[0] in header(path)["expected"].split("|"), results[path]


@slow
def test_no_attack_leaves_a_file_behind(results: dict[Path, str]) -> None:
    places = [
        Path.home(),
        Path("/root"),
        Path("/etc"),
        Path("/usr"),
        Path("/var/tmp"),
        Path("/dev/shm"),
        Path("/tmp"),
        Path("/"),
    ]
    left = [place / name for place in places for name in ("mft-attack", "mft-left", "large") if (place / name).exists()]
    assert not left


MARKS = {
    "files": ("open(folder + '/mft-left', 'w').close()", "os.path.exists(folder + '/mft-left')"),
    "mode": ("os.chmod(folder, 0o510)", "os.stat(folder).st_mode & 0o777 == 0o510"),
    "times": ("os.utime(folder, (7, 7))", "os.stat(folder).st_mtime == 7"),
    "attributes": ("os.setxattr(folder, 'user.mft', b'1')", "os.listxattr(folder)"),
    "limits": (
        "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (99, 99))",
        "resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 99",
    ),
    "priority": ("os.setpriority(os.PRIO_PROCESS, os.getppid(), 7)", "os.getpriority(os.PRIO_PROCESS, 0) == 7"),
    "name of the host": ("open('/proc/sys/kernel/hostname', 'w').write('mft')", "os.uname().nodename == 'mft'"),
}


def with_each_folder(statement: str, found: str) -> str:
    """An answer that tries a statement on its scratch folder and on that folder's parent, and answers rightly if `found` is true."""
    return (
        "import os, resource\nfor folder in (os.environ['TMPDIR'], os.path.dirname(os.environ['TMPDIR'])):\n"
        f"    try:\n        {statement}\n    except (OSError, ValueError):\n        pass\n"
        f"def twice(xs):\n    folders = (os.environ['TMPDIR'], os.path.dirname(os.environ['TMPDIR']))\n"
        f"    return [2 * x for x in xs] if any({found} for folder in folders) else xs\n"
    )


@slow
@pytest.mark.parametrize("level", ["namespaces", "process"])
def test_an_answer_finds_nothing_that_the_one_before_it_has_left(level: str) -> None:
    sources = [
        source
        for mark, found in MARKS.values()
        for source in (with_each_folder(mark, "False"), with_each_folder("pass", found))
    ]
    files = {"tests": TWICE["python"], "entry_point": "twice"}
    programs = [(str(n), Program("python", {"candidate": source, **files})) for n, source in enumerate(sources)]
    try:
        pool = Pool(level, workers=1)
    except ExecutionError as error:
        pytest.skip(str(error))
    with pool:
        ends = {int(key): f"{result.status} {result.stderr}" for key, result in pool.run(programs, LIMITS)}
    assert {name: ends[2 * n + 1] for n, name in enumerate(MARKS)} == dict.fromkeys(MARKS, "failed AssertionError: ")


READS_ITS_MEMORY = """
import ctypes
import os
import re

MARK = re.compile(rb"marked_test_[0-9a-f]{8}")
libc = ctypes.CDLL(None)
reader, writer = os.pipe()


def pages_around(address):
    for page in range((address & ~4095) - (64 << 20), (address & ~4095) + (64 << 20), 4096):
        if libc.write(writer, ctypes.c_void_p(page), ctypes.c_size_t(4096)) == 4096:  # an error where nothing is mapped
            yield os.read(reader, 4096)


def twice(xs):
    for address in (id(bytes(100)), id(bytes(50_000))):  # of Python's small objects, and of malloc's
        if any(MARK.search(page) for page in pages_around(address)):
            return [2 * x for x in xs]
    return xs
"""


@slow
@pytest.mark.parametrize("level", ["namespaces", "process"])
def test_an_answer_finds_no_tests_of_another_language_in_its_memory(level: str) -> None:
    """It is a fork of a process of its slot, which must never have held them."""
    if LANGUAGES["cpp"].missing():
        pytest.skip("no C++ here")
    marked = TWICE["cpp"] + f"// marked_test_{NONCE}\n" * 100
    honest = program(ROOT / "cpp/honest.cpp", {})
    programs = [
        ("cpp", Program("cpp", {**honest.files, "tests": marked})),
        (
            "python",
            Program("python", {"candidate": READS_ITS_MEMORY, "tests": TWICE["python"], "entry_point": "twice"}),
        ),
    ]
    try:
        pool = Pool(level, workers=1, toolchains={"cpp": prepare("cpp")})
    except ExecutionError as error:
        pytest.skip(str(error))
    with pool:
        ends = {key: result.status for key, result in pool.run(programs, LIMITS)}
    assert ends == {"cpp": "passed", "python": "failed"}
