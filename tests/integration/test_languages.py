"""Every language and every family on real programs: references pass, empty and broken answers do not. Slow; needs the data."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mftcoder.benchmarks.catalogue import all_tasks, load
from mftcoder.errors import ExecutionError
from mftcoder.execution.languages import LANGUAGES, prepare
from mftcoder.execution.pool import open_pool
from mftcoder.execution.sandbox import Limits

DATA = Path(os.environ.get("MFTCODER_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
LIMITS = Limits(seconds=30.0)
TASKS = sorted(  # an exam of a user's own code has its own tests
    name
    for name in all_tasks()
    if "plus" not in name and "describe" not in name and name != "mini" and not name.startswith("exam-")
)

pytestmark = [
    pytest.mark.slow(reason="compilers of six languages, about a second a program"),
    pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' data is not here"),
]


@pytest.mark.parametrize("task", TASKS)
def test_first_problems_of_every_task_are_judged_rightly(task):
    """Three problems a task: the reference passes; nothing, a cut reference and prose do not."""
    language = all_tasks()[task].language
    if LANGUAGES[language].missing():
        pytest.skip(f"{language}: {', '.join(LANGUAGES[language].missing())} not found")
    source = all_tasks()[task].source
    if source is not None and source.local_file(DATA) is None:
        pytest.skip(f"{source.path} is not in {DATA}")
    benchmark = load(task, DATA, 3)
    programs = {}
    for problem in benchmark.problems:
        answers = {
            "reference": problem.reference,
            "nothing": "",
            "prose": "I cannot do that.",
            "cut": problem.reference[: len(problem.reference) // 3],
        }
        programs |= {f"{kind} {problem.id}": benchmark.program(problem, answer) for kind, answer in answers.items()}
    with open_pool("auto", 2, [language]) as pool:
        statuses = {key: result.status for key, result in pool.run(programs.items(), LIMITS)}
    assert {status for key, status in statuses.items() if key.startswith("reference")} == {"passed"}, statuses
    assert not {status for key, status in statuses.items() if not key.startswith("reference")} & {
        "passed",
        "sandbox_error",
    }, statuses


@pytest.mark.parametrize("language", LANGUAGES)
def test_ways_to_write_an_answer_are_judged_alike(language):
    if LANGUAGES[language].missing():
        pytest.skip(f"{language}: {', '.join(LANGUAGES[language].missing())} not found")
    benchmark = load(f"humanevalsynthesize-{language}", DATA, 2)
    programs = {}
    for problem in benchmark.problems:
        code = problem.prompt + problem.reference
        ways = {"raw": problem.reference, "prefixed": code, "fenced": f"Sure!\n\n```{language}\n{code}\n```\nIt works."}
        programs |= {f"{way} {problem.id}": benchmark.program(problem, answer) for way, answer in ways.items()}
    with open_pool("auto", 2, [language]) as pool:
        statuses = {key: result.status for key, result in pool.run(programs.items(), LIMITS)}
    assert set(statuses.values()) == {"passed"}, statuses


def test_a_missing_toolchain_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ExecutionError, match=r"Go: go not found on this machine.*apt-get install golang-go"):
        prepare("go")


def test_a_program_without_a_prepared_toolchain_is_never_the_models_failure():
    with open_pool("auto", 1) as pool:
        benchmark = load("humanevalsynthesize-go", DATA, 1)
        program = replace(benchmark.program(benchmark.problems[0], ""))
        [(_, result)] = pool.run([("a", program)], LIMITS)
    assert result.status == "sandbox_error"


# Answers that bring the helper along: an encoder that changes nothing and its decoder, a polynomial that is zero everywhere.
# With their own helper they would be right.
OWN_HELPERS = {
    "decode_cyclic": {
        "python": "def encode_cyclic(s): return s\ndef decode_cyclic(s): return s\n",
        "cpp": "#include<string>\nusing namespace std;\nstring encode_cyclic(string s){ return s; }\nstring decode_cyclic(string s){ return s; }\n",
        "java": "class Solution {\n    public String encodeCyclic(String s) { return s; }\n    public String decodeCyclic(String s) { return s; }\n}\n",
        "js": "const encodeCyclic = (s) => s\nconst decodeCyclic = (s) => s\n",
        "go": "func EncodeCyclic(s string) string { return s }\n\nfunc DecodeCyclic(s string) string { return s }\n",
        "rust": "fn encode_cyclic(s: &str) -> String { s.to_string() }\nfn decode_cyclic(s: &str) -> String { s.to_string() }\n",
    },
    "find_zero": {
        "python": "def poly(xs, x): return 0\ndef find_zero(xs): return 0\n",
        "cpp": "#include<vector>\nusing namespace std;\ndouble poly(vector<double> xs, double x){ return 0; }\n"
        "double find_zero(vector<double> xs){ return 0; }\n",
        "java": "import java.util.*;\nclass Solution {\n    public double poly(List<Double> xs, double x) { return 0; }\n"
        "    public double findZero(List<Double> xs) { return 0; }\n}\n",
        "js": "const poly = (xs, x) => 0\nconst findZero = (xs) => 0\n",
        "go": "func Poly(xs []int, x float64) float64 { return 0 }\n\nfunc FindZero(xs []int) float64 { return 0 }\n",
        "rust": "fn poly(xs: &Vec<f64>, x: f64) -> f64 { 0.0 }\nfn find_zero(xs: &Vec<f64>) -> f64 { 0.0 }\n",
    },
}
PAIRS = [
    *((f"humanevalsynthesize-{language}", language) for language in LANGUAGES),
    *((f"humanevalx-{language}", language) for language in LANGUAGES),
    ("codefuseeval-completion-rust", "rust"),
    *(
        (f"codefuseeval-translation-{pair}", pair.split("-")[1])
        for pair in ("cpp-java", "cpp-python", "java-cpp", "python-java")
    ),
]


@pytest.fixture(scope="module")
def pool():
    with open_pool("auto", 2, [name for name, row in LANGUAGES.items() if not row.missing()]) as pool:
        yield pool


@pytest.mark.parametrize("entry", OWN_HELPERS)
@pytest.mark.parametrize(("task", "language"), PAIRS)
def test_helpers_of_a_test_come_from_the_problem_and_not_from_the_answer(pool, task, language, entry):
    if LANGUAGES[language].missing():
        pytest.skip(f"{language}: {', '.join(LANGUAGES[language].missing())} not found")
    benchmark = load(task, DATA)
    problems = [p for p in benchmark.problems if p.entry_point.lower().replace("_", "") == entry.replace("_", "")]
    assert len(problems) == 1
    programs = {
        "own helper": benchmark.program(problems[0], OWN_HELPERS[entry][language]),
        "reference": benchmark.program(problems[0], problems[0].reference),
    }
    statuses = {key: result.status for key, result in pool.run(programs.items(), LIMITS)}
    assert statuses == {"own helper": "failed", "reference": "passed"}
