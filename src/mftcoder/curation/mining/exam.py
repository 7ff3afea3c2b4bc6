"""Run mined functions in the sandbox, and make an exam of the held-out code and examples of a sixth task, `write_asserts`.

The exam's problems are: complete, write and repair the function, and write a test for it. The caller checks whether a problem is fair
(its own solution passes, an empty answer fails).
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mftcoder.curation.mining.mine import (
    Mined,
    MinedTask,
    MiningOptions,
    Record,
    Side,
    chat_record,
    side_of,
    valid_limit,
)
from mftcoder.curation.mining.recording import Behaviour, record
from mftcoder.curation.mining.standalone import StandaloneFunction
from mftcoder.curation.mining.tasks import (
    Example,
    UnfitError,
    complete_function,
    repair_function,
    write_asserts,
    write_function,
)
from mftcoder.execution.pool import Pool

ASSERTS_TASK = "write_asserts"
KINDS = ("complete", "write", "repair", "test")
MUTANTS = 3  # of a function that needs a test; the test must fail on one of them
_BATCH = 64


@dataclass(frozen=True)
class Ran:
    """The result of running the functions. `skips` counts, by reason, the functions that gave nothing."""

    asserts: MinedTask
    problems: list[Record]
    skips: Counter[str]


def run_functions(mined: Mined, options: MiningOptions, pool: Pool, on_done: Callable[[], None] = lambda: None) -> Ran:
    """Run the functions that can stand alone, and make examples and problems of them. `on_done` is called after each."""
    asserts, problems, skips = MinedTask(), list[Record](), Counter[str]()
    waiting: dict[Side, list[StandaloneFunction]] = {"train": [], "valid": [], "exam": []}
    for item in mined.standalone:
        waiting[side_of(item.function.module, options)].append(item)
    for records, side, most in (
        (asserts.train, waiting["train"], options.max_per_task),
        (asserts.valid, waiting["valid"], valid_limit(options)),
    ):
        ran = _behaviours(side, most, pool, skips, on_done)
        for function, behaviour in ((item.function, behaviour) for item, behaviour in ran):
            name = f"{ASSERTS_TASK}/{function.origin}"
            records.append(chat_record(ASSERTS_TASK, name, function, write_asserts(function, behaviour)))
    for item, behaviour in _behaviours(waiting["exam"], None, pool, skips, on_done):
        problems += _problems(item, behaviour, options.seed, skips)
    return Ran(asserts, problems, skips)


def _behaviours(
    waiting: Sequence[StandaloneFunction],
    most: int | None,
    pool: Pool,
    skips: Counter[str],
    on_done: Callable[[], None],
) -> Iterator[tuple[StandaloneFunction, Behaviour]]:
    """The first `most` functions that have a behaviour. Functions over the limit are counted, not run."""
    found = 0
    for start in range(0, len(waiting), _BATCH):
        batch = waiting[start : start + _BATCH]
        if most is not None and found >= most:
            skips[f"{ASSERTS_TASK}: over the limit"] += len(batch)
            continue
        for item, behaviour in zip(batch, record(batch, pool, on_done), strict=True):
            if isinstance(behaviour, str):
                skips[f"run: {behaviour}"] += 1
            elif most is not None and found >= most:
                skips[f"{ASSERTS_TASK}: over the limit"] += 1
            else:
                found += 1
                yield item, behaviour


def _problems(item: StandaloneFunction, behaviour: Behaviour, seed: int, skips: Counter[str]) -> Iterator[Record]:
    """A problem of each kind that fits the function. The choices depend only on the function, the kind and the seed."""
    function = item.function
    rngs = {kind: random.Random(f"{seed}:{kind}:{function.origin}") for kind in KINDS}
    makers: dict[str, Callable[[], Example]] = {
        "complete": lambda: complete_function(function, rngs["complete"]),
        "write": lambda: write_function(function, rngs["write"]),
        "repair": lambda: repair_function(function, rngs["repair"], behaviour.mutants),
        "test": lambda: write_asserts(function, behaviour),
    }
    for kind, make in makers.items():
        try:
            example = make()
        except UnfitError as unfit:
            skips[f"exam: {kind}: {unfit}"] += 1
        else:
            yield _problem(kind, item, behaviour, example)


def _problem(kind: str, item: StandaloneFunction, behaviour: Behaviour, example: Example) -> Record:
    """A line of exam.jsonl: the fields of HumanEval, and the kind of the problem."""
    function = item.function
    prompt = function.header if kind == "repair" else example.code
    is_test = kind == "test"
    return {
        "task_id": f"{kind}/{function.origin}",
        "kind": kind,
        "instruction": example.prompt,
        "prompt": prompt,
        "entry_point": function.name,
        "canonical_solution": behaviour.asserts(function.name, 1) if is_test else function.source[len(prompt) :] + "\n",
        "test": "" if is_test else behaviour.asserts(function.name) + "\n",
        "context": item.context,
        **({"buggy": example.code} if kind == "repair" else {}),
        **({"mutants": list(itertools.islice(behaviour.mutants, MUTANTS))} if is_test else {}),
        "source": function.origin,
    }
