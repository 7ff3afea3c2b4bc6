"""Practice problems: those of an exam's form that a model may train on, and which of its answers to them are worth training on.

Practice and exam are kept apart by module, so no function of a practice problem is in the exam. Nothing is run here.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers.python_code import is_valid
from mftcoder.benchmarks.catalogue import all_tasks
from mftcoder.benchmarks.families import humaneval
from mftcoder.benchmarks.families.exam import FILE, KINDS, benchmark_of
from mftcoder.benchmarks.passk import PassAtK, estimate
from mftcoder.benchmarks.problem import FENCE
from mftcoder.benchmarks.rewards import Groups
from mftcoder.benchmarks.sources import local_records
from mftcoder.errors import BenchmarkError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Problems:
    """What is trained on and what is scored. `shared` practice problems were in the exam too, and were left out."""

    practice: tuple[Record, ...]
    exam: tuple[Record, ...]
    shared: int = 0


def read_problems(path: Path, kinds: Sequence[str]) -> tuple[list[Record], str]:
    """The problems of these kinds in `exam.jsonl` (a folder with it, or such a file), and the file's name with its checksum.

    A file in HumanEval's format has problems of kind complete. `mini` is the small benchmark of the package.
    """
    file = _file_of(path)
    records, origin = local_records(file)
    problems = _mistakes(records)
    if not problems:
        records = [humaneval.exam_record(record) if _is_humaneval(record) else record for record in records]
    for kind in KINDS if not problems else ():
        benchmark_of(kind, records, str(file))
    if problems:
        raise BenchmarkError(*(f"{file}: {problem}" for problem in problems))
    chosen = [record for record in records if record["kind"] in kinds]
    if not chosen:
        raise BenchmarkError(f"{file}: has no problem of kind {', '.join(kinds)}")
    return chosen, origin


def _file_of(path: Path) -> Path:
    """The file with the problems. BenchmarkError for the name of a benchmark other than mini, whose data lie in no known file."""
    if path.is_dir():
        return path / FILE
    if path.is_file() or str(path) not in all_tasks():
        return path
    if str(path) == "mini":
        return humaneval.MINI_FILE
    raise BenchmarkError(
        f"{path}: is the name of a benchmark, and only mini comes with the package. Give its file, if that has HumanEval's format, or a "
        "folder of `mft data mine --exam`"
    )


def _is_humaneval(record: Any) -> bool:
    return isinstance(record, dict) and "kind" not in record and not _lacks_of_humaneval(record)


def _lacks_of_humaneval(record: Record) -> list[str]:
    """The fields of HumanEval's format that the record has not as texts; an id may be a number."""
    texts = [name for name in humaneval.FIELDS[1:] if not isinstance(record.get(name), str)]
    return texts if isinstance(record.get("task_id"), str | int) else ["task_id", *texts]


def _mistakes(records: Sequence[Any]) -> list[str]:
    """Records of another form, unknown kinds, problems without tests, and ids that occur twice."""
    found = []
    ids = Counter(str(record.get("task_id")) for record in records if isinstance(record, dict))
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            found.append(f"problem {number}: expected an object. `mft data mine --exam` writes it")
        elif "kind" not in record and not _is_humaneval(record):
            missing = ", ".join(_lacks_of_humaneval(record))
            found.append(
                f"problem {number}: has no kind, as `mft data mine --exam` writes it, and lacks {missing} of HumanEval's format"
            )
        elif record.get("kind", "complete") not in KINDS:
            found.append(f"problem {number}: kind {record.get('kind')!r} is unknown. Known: {', '.join(KINDS)}")
        elif record.get("kind") != "test" and not str(record.get("test") or "").strip():
            found.append(f"problem {number}: has no tests, so an answer cannot be judged")
        elif not is_valid(str(record.get("test") or "")):
            found.append(f"problem {number}: its tests are not valid Python")
    found += [f"{count} problems have the task_id {name!r}" for name, count in ids.items() if count > 1]
    return found


def divided(records: Sequence[Record], share: float, seed: int) -> Problems:
    """Practice with about this share of the problems, and the exam with the others. All problems of a module are on one side.

    Modules come in an order by their hash. Each goes to the practice until that has its share.
    """
    modules: dict[str, list[Record]] = {}
    for record in records:
        modules.setdefault(_module(record), []).append(record)
    if len(modules) < 2:
        raise BenchmarkError(
            "--train-share: all problems are of one module, which cannot be on both sides. Give --train"
        )
    order = sorted(modules, key=lambda module: hashlib.sha256(f"{seed}:{module}".encode()).digest())
    wanted, taken = share * len(records), set[str]()
    for module in order[:-1]:
        if taken and sum(len(modules[name]) for name in taken) >= wanted:
            break
        taken.add(module)
    practice = [record for record in records if _module(record) in taken]
    return apart(practice, [record for record in records if _module(record) not in taken])


def _module(record: Record) -> str:
    """`json/decoder.py` of `json/decoder.py:343`; a problem without a source stands alone."""
    return str(record.get("source") or record["task_id"]).rpartition(":")[0] or str(record["task_id"])


def apart(practice: Sequence[Record], exam: Sequence[Record]) -> Problems:
    """Without the practice problems that are in the exam: the same id, the same tests of the same name, or the same function."""
    known = {identity for record in exam for identity in _identities(record)}
    kept = tuple(record for record in practice if known.isdisjoint(_identities(record)))
    if not kept:
        raise BenchmarkError(
            "--train: every problem is in the exam too. A model must not train on what it is scored on"
        )
    return Problems(kept, tuple(exam), len(practice) - len(kept))


def _identities(record: Record) -> set[tuple[str, str]]:
    function = record["prompt"] if record["kind"] == "test" else record["prompt"] + record["canonical_solution"]
    found = {("id", str(record["task_id"])), ("function", " ".join(function.split()))}
    return found | ({("tests", f"{record['entry_point']}\n{record['test']}")} if record["test"] else set())


@dataclass(frozen=True)
class Rollout:
    """One sampled answer: the text as the model wrote it, the code in it, and whether that passed."""

    problem_id: str
    sample: int
    text: str
    answer: str
    is_cut: bool  # ended by the token limit
    passed: bool


def statuses_of(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """Problem -> the verdict on each sample, from a metrics file."""
    return {str(row["id"]): row["statuses"] for row in metrics["problems"]}


def rollouts_of(completions: Iterable[Record], metrics: Mapping[str, Any]) -> list[Rollout]:
    """Every sampled answer with its verdict, by problem and sample; `completions` are the records of its journal."""
    statuses = statuses_of(metrics)
    found = [
        Rollout(
            record["problem_id"],
            record["sample"],
            record["text"],
            record["answer"],
            record["finish_reason"] == "length",
            statuses[record["problem_id"]][record["sample"]] == "passed",
        )
        for record in completions
    ]
    order = {name: number for number, name in enumerate(statuses)}
    return sorted(found, key=lambda rollout: (order[rollout.problem_id], rollout.sample))


@dataclass(frozen=True)
class Kept:
    """The answers of a task that are trained on, and how many passing ones were left out because they are cut, equal, or too many."""

    records: list[dict[str, Any]] = field(default_factory=list)
    cut: int = 0
    equal: int = 0
    over: int = 0


def keep(
    rollouts: Iterable[Rollout], prompts: Mapping[str, str], most: int, number: int, before: Sequence[Record] = ()
) -> Kept:
    """The records `before` this round, and a record for each passing answer that is new, at most `most` of a problem.

    Answers that differ in whitespace only are equal. One that the token limit cut would teach a model not to end.
    """
    records = [dict(record) for record in before]
    known = {(record["problem_id"], record["key"]) for record in records}
    counts = Counter(record["problem_id"] for record in records)
    cut = equal = over = 0
    for rollout in (rollout for rollout in rollouts if rollout.passed):
        key = hashlib.sha256(" ".join(rollout.answer.split()).encode()).hexdigest()[:16]
        if rollout.is_cut:
            cut += 1
        elif (rollout.problem_id, key) in known:
            equal += 1
        elif counts[rollout.problem_id] >= most:
            over += 1
        else:
            known.add((rollout.problem_id, key))
            counts[rollout.problem_id] += 1
            records.append(_record(rollout, prompts[rollout.problem_id], key, number))
    return Kept(records, cut, equal, over)


def _record(rollout: Rollout, prompt: str, key: str, number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": closed(rollout.text)}]
    name = f"{rollout.problem_id}#round{number}-{rollout.sample}"
    return {"id": name, "problem_id": rollout.problem_id, "round": number, "key": key, "messages": messages}


def closed(text: str) -> str:
    """The text with the fence that its stop word took away: generation ends before the line that closes the first block."""
    fences = sum(line.lstrip().startswith(FENCE) for line in text.splitlines())
    return f"{text.rstrip()}\n{FENCE}" if fences % 2 else text


def signal(passed: Iterable[int], samples: int) -> dict[str, int]:
    """How many problems no rollout passed, some passed and all passed, from the number that passed of each."""
    counts = Counter("none" if not count else "all" if count == samples else "some" for count in passed)
    return {name: counts[name] for name in ("none", "some", "all")}


@dataclass(frozen=True)
class Round:
    """What a round sampled and kept. `solved` counts problems that no rollout, some, and all rollouts passed."""

    number: int
    problems: int
    rollouts: int
    passed: int
    solved: dict[str, int]
    scores: list[PassAtK]  # of the practice problems, by the model that sampled
    kept: int  # answers that are trained on
    new: int  # of them from this round
    left_out: dict[str, int]
    """rft: passing answers that were cut by the token limit, equal to another, over the limit of a problem. grpo: groups whose rewards are
    all equal, whose answers were all cut, and with an answer that is longer than a row."""
    mean_reward: float | None = None  # of all answers (grpo)


def round_of(number: int, metrics: Sequence[dict[str, Any]], kept: dict[str, Kept], samples: int, before: int) -> Round:
    passed = [row["passed"] for record in metrics for row in record["problems"]]
    scores = list(map(partial(estimate, [samples] * len(passed), passed), dict.fromkeys((1, samples))))
    left_out = {name: sum(getattr(found, name) for found in kept.values()) for name in ("cut", "equal", "over")}
    total = sum(len(found.records) for found in kept.values())
    counts = (len(passed), samples * len(passed), sum(passed))
    return Round(number, *counts, signal(passed, samples), scores, total, total - before, left_out)


def policy_round_of(number: int, metrics: Sequence[dict[str, Any]], groups: Groups, samples: int) -> Round:
    base = round_of(number, metrics, {}, samples, 0)
    trained = sum(sum(record["trained"]) for record in groups.records)
    left_out = {"equal": groups.equal, "cut": groups.cut, "long": 0}
    return replace(base, kept=trained, new=trained, left_out=left_out, mean_reward=groups.mean_reward)


def lines_of(entry: Round) -> list[str]:
    """What a round sampled, in two sentences."""
    none, every, left = entry.solved["none"], entry.solved["all"], entry.left_out
    if entry.mean_reward is not None:
        return [
            f"round {entry.number}: mean reward {entry.mean_reward:.3f}; {entry.passed} of {entry.rollouts} answers pass; {none} of "
            f"{entry.problems} problems are solved by no answer, {every} by all",
            f"round {entry.number}: {entry.kept} answers to train on; left out: {left['equal']} groups without a signal, because their rewards are "
            f"all equal, and {left['cut']} whose answers the token limit cut",
        ]
    return [
        f"round {entry.number}: {entry.passed} of {entry.rollouts} answers pass; {none} of {entry.problems} problems are solved by no "
        f"answer, {every} by all",
        f"round {entry.number}: {entry.kept} answers to train on, {entry.new} of them new; left out of the passing ones: {left['cut']} cut by "
        f"the token limit, {left['equal']} equal to another, {left['over']} over --keep",
    ]
