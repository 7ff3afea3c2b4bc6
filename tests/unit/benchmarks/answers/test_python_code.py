"""How an answer and a prompt become a program, and what tests may use of the prompt."""

import pytest

from mftcoder.benchmarks.answers.python_code import assemble, helpers_of, with_import_header, with_imports
from mftcoder.benchmarks.catalogue import load
from mftcoder.benchmarks.families.humanevalpack import _family
from mftcoder.benchmarks.problem import Benchmark
from mftcoder.errors import BenchmarkError

PROMPT = 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """ Twice each. """\n'
BODY = "    return [2 * x for x in xs]\n"
WHOLE = "def double(xs: List[int]) -> List[int]:\n" + BODY


@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        PROMPT + BODY,
        WHOLE,
        "\n" + WHOLE,
        f"```python\n{WHOLE}```",
        f"Here is the function:\n\n```python\n{PROMPT}{BODY}```\nIt doubles each.",
        f"```\n{BODY}```",
        f"Sure.\n```python\n{WHOLE}",
        f"{BODY}```\nAnd a word behind it.",
    ],
)
def test_every_way_to_write_an_answer_runs(answer):
    names: dict = {}
    exec(assemble(PROMPT, answer, "double"), names)
    assert names["double"]([1, 2]) == [2, 4]


def test_an_answer_without_a_fence_is_never_changed():
    broken = "    return [2 * x for x in xs\n\nThat's it."
    assert assemble(PROMPT, broken, "double") == PROMPT + broken


def test_a_fence_within_a_docstring_is_code_like_any_other():
    answer = '    """Say:\n    ```\n    double([1])\n    ```\n    """\n' + BODY
    assert assemble(PROMPT, answer, "double") == PROMPT + answer


def test_tests_get_the_prompts_helpers_but_not_its_stub():
    helpers = helpers_of("import math\ndef area(r):\n    return math.pi * r * r\n\ndef f(x):\n    ''' Do. '''\n", "f")
    assert "def area" in helpers and "import math" in helpers and "def f" not in helpers


def test_a_prompt_that_ends_with_its_signature_has_helpers_too():
    assert helpers_of("import math\n\ndef f(x):\n", "f") == "import math\n"


def test_the_header_comes_after_future_imports_and_contains_numpy_only_if_the_code_does():
    code = with_import_header("from __future__ import annotations\nx: int = 1\n")
    compile(code, "program", "exec")
    assert "numpy" not in code
    assert "import numpy as np" in with_import_header("y = np.zeros(1)")


def test_the_import_header_of_humaneval_is_chosen_and_recorded():
    mini = load("mini", None, 1)
    bare, headed = with_imports(mini, "none"), with_imports(mini, "reference")
    problem = mini.problems[0]
    assert bare.program(problem, "    pass\n") == mini.program(problem, "    pass\n")
    assert "from typing import *" not in bare.program(problem, "    pass\n").files["candidate"]
    assert headed.program(problem, "    pass\n").files["candidate"].startswith("import math, re, sys")
    assert headed.program(problem, "    pass\n").files["tests"] == mini.program(problem, "    pass\n").files["tests"]
    assert (bare.family.notes["header"], headed.family.notes["header"][:13]) == ("none", "the reference")


def test_a_benchmark_with_a_header_of_its_own_keeps_it():
    pack = Benchmark("humanevalsynthesize-python", (), _family("synthesize", "python"), "here")
    for imports in ("none", "reference"):
        with pytest.raises(BenchmarkError, match="humanevalsynthesize-python has a header of its own"):
            with_imports(pack, imports)
