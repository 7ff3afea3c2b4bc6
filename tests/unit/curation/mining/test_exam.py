"""Functions of a small repository run in a real sandbox: their behaviour, the exam, and the sixth task."""

from collections import Counter
from collections.abc import Iterator

import pytest

from mftcoder.app.data.mine import fair_problems
from mftcoder.curation.mining.exam import KINDS, Ran, run_functions
from mftcoder.curation.mining.mine import Mined, MiningOptions, mine, side_of
from mftcoder.curation.mining.recording import Behaviour, record
from mftcoder.execution.pool import Pool

MODULE = '''
OFFSET = {n}


def clip_{n}(value, low, high):
    """Return value moved into the range from low to high."""
    if value < low:
        return low
    if value > high:
        return high
    return value + OFFSET - {n}


def roll(value):
    return object() if value else [object(), object(), object()]


def leave(value):
    import os
    return os._exit(0) if value else os._exit(1)
'''
OPTIONS = MiningOptions(valid_share=0.2, exam_share=0.4)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool("process", workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Mined:
    folder = tmp_path_factory.mktemp("repository")
    for n in range(15):
        (folder / f"part{n}.py").write_text(MODULE.replace("{n}", str(n)))
    return mine(folder, OPTIONS)


@pytest.fixture(scope="module")
def ran(mined: Mined, pool: Pool) -> Ran:
    return run_functions(mined, OPTIONS, pool)


def modules(records: list[dict]) -> set[str]:
    return {record["source"].split(":")[0] for record in records}


def test_a_behaviour_is_what_the_function_answers_and_what_its_mutants_do_not(mined: Mined, pool: Pool) -> None:
    item = next(item for item in mined.standalone if item.function.name.startswith("clip"))
    (behaviour,) = record([item], pool)
    assert isinstance(behaviour, Behaviour)
    names: dict = {}
    exec(item.context + item.function.source, names)
    exec(behaviour.asserts(item.function.name), names)
    for mutant in behaviour.mutants:
        broken: dict = {}
        exec(item.context + mutant, broken)
        with pytest.raises((AssertionError, TypeError, NameError)):
            exec(behaviour.asserts(item.function.name), broken)


def test_a_function_that_cannot_be_examined_says_why(mined: Mined, pool: Pool) -> None:
    items = {name: next(i for i in mined.standalone if i.function.name == name) for name in ("roll", "leave")}
    assert record(list(items.values()), pool) == ["no plain values fit it", "ends the process"]


def test_a_long_behaviour_comes_whole(mined: Mined, pool: Pool) -> None:
    """The result is longer than one run of the sandbox can return."""
    item = next(item for item in mined.standalone if item.function.name.startswith("clip"))
    text = "def clip_0(value):\n    return str(value) * 2 + '" + "x" * 55 + "'\n"
    long = type(item)(
        type(item.function)("m.py", "", "clip_0", 1, "", "", "", text), "", 1, (text.replace("2", "3"),), (), ()
    )
    (behaviour,) = record([long], pool)
    assert isinstance(behaviour, Behaviour)
    assert sum(map(len, (part for call in behaviour.calls for part in call))) > 250
    assert all(answer.endswith("x" * 55 + "'") for _, answer in behaviour.calls)


def test_training_validation_and_exam_share_no_module(mined: Mined, ran: Ran) -> None:
    train, valid = modules(ran.asserts.train), modules(ran.asserts.valid)
    for task in mined.tasks.values():
        train |= modules(task.train)
        valid |= modules(task.valid)
    exam = modules(ran.problems)
    assert train
    assert valid
    assert exam
    assert train & valid == train & exam == valid & exam == set()
    assert exam == {name for name in exam if side_of(name, OPTIONS) == "exam"}


def test_an_exam_asks_for_each_kind_and_its_own_solutions_pass(ran: Ran, pool: Pool) -> None:
    fair = fair_problems(ran.problems, pool, Counter())
    assert {problem["kind"] for problem in fair} == set(KINDS)
    assert [problem for problem in fair if problem["kind"] != "complete"] == [
        problem for problem in ran.problems if problem["kind"] != "complete"
    ]


def test_a_problem_that_its_own_solution_fails_or_nothing_solves_is_left_out_and_counted(ran: Ran, pool: Pool) -> None:
    first = {kind: next(p for p in ran.problems if p["kind"] == kind) for kind in KINDS}
    spoilt = [
        first["write"] | {"test": "assert False\n"},
        first["complete"] | {"test": ""},
        first["repair"] | {"buggy": first["repair"]["prompt"] + first["repair"]["canonical_solution"]},
        first["test"] | {"mutants": [first["test"]["prompt"]]},
    ]
    skips = Counter[str]()
    assert fair_problems(spoilt, pool, skips) == []
    assert skips == {
        "exam: write: its own solution fails": 1,
        "exam: complete: a worthless answer passes": 1,
        "exam: repair: a worthless answer passes": 1,
        "exam: test: its own solution fails": 1,
    }


def test_the_same_code_gives_the_same_exam(mined: Mined, ran: Ran, pool: Pool) -> None:
    again = run_functions(mined, OPTIONS, pool)
    assert (again.problems, again.asserts, again.skips) == (ran.problems, ran.asserts, ran.skips)


def test_a_limit_on_training_stops_the_running_and_is_counted(mined: Mined, pool: Pool) -> None:
    options = MiningOptions(valid_share=0.2, exam_share=0.4, max_per_task=2)
    ran = run_functions(mined, options, pool)
    assert (len(ran.asserts.train), len(ran.asserts.valid)) == (2, 1)
    assert ran.skips["write_asserts: over the limit"] > 0
