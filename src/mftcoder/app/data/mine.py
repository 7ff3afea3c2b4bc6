"""`mft data mine`: read a folder of code in six languages, and write one folder of chat_rounds JSONL per task and `mining.json` with all counts.

`OUT/<task>/train.jsonl` and `valid.jsonl` are written atomically. The same folder, seed and options give the same bytes. With an
exam folder, functions are also run in the sandbox: it gets `exam.jsonl`, and `OUT` gets the task `write_asserts`.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mftcoder.benchmarks.families import exam
from mftcoder.curation.mining.exam import ASSERTS_TASK, run_functions
from mftcoder.curation.mining.functions import MAX_SOURCE_CHARS
from mftcoder.curation.mining.languages.grammars import LANGUAGES
from mftcoder.curation.mining.mine import Mined, MiningOptions, Record, mine
from mftcoder.curation.mining.repository.history import HISTORY_TASK, mine_history
from mftcoder.curation.mining.sources import standard_library
from mftcoder.curation.mining.tasks import CONTEXT_TASKS, DEFAULT_TASKS, TASK_NAMES, TRANSLATE
from mftcoder.errors import DataError
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.sandbox import Limits, Program
from mftcoder.jsonl import write_json, write_jsonl
from mftcoder.log import OnProgress, no_progress
from mftcoder.registry import did_you_mean


@dataclass(frozen=True)
class MinedData:
    """What was written: the examples of each task, and how many problems of each kind the exam has."""

    mined: Mined
    exam_kinds: Counter[str]


def mine_data(
    folder: Path | None,
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    licenses: Sequence[str] | None = None,
    context: bool = False,
    max_per_task: int | None = None,
    max_chars: int = MAX_SOURCE_CHARS,
    valid_share: float = 0.1,
    exam_dir: Path | None = None,
    exam_share: float = 0.2,
    history: Path | None = None,
    fix_pattern: str | None = None,
    seed: int = 42,
    on_progress: OnProgress = no_progress,
) -> MinedData:
    """Mine `folder` and the git repository `history` into `out`.

    If both are None, the Python files of the running interpreter's standard library are mined.
    """
    held_out = exam_share if exam_dir else 0.0
    chosen = tuple(languages or (LANGUAGES if folder or history else ("python",)))
    options = MiningOptions(
        tasks=tuple(tasks or DEFAULT_TASKS),
        max_per_task=max_per_task,
        valid_share=valid_share,
        exam_share=held_out,
        max_chars=max_chars,
        seed=seed,
        languages=chosen,
        licenses=tuple(licenses or ()),
        context=context,
    )
    source = folder or (None if history else standard_library())
    _check(source, options)
    pattern = _compiled(fix_pattern)
    mined = Mined.nothing()
    if source:
        mined = mine(source, options, lambda done, total: on_progress(f"reading {source}", done, total))
    if history:
        mined.tasks[HISTORY_TASK] = mine_history(
            history, options, mined.skips, pattern, lambda done, total: on_progress("reading commits", done, total)
        )
    if not any(task.train for task in mined.tasks.values()):
        raise DataError(f"{source or history}: no function in it makes an example: {_most_common(mined.skips)}")
    problems = _examine(mined, options, on_progress) if exam_dir else []
    if exam_dir:
        write_jsonl(exam_dir / exam.FILE, problems)
    kinds = Counter(problem["kind"] for problem in problems)
    _write(mined, {"source": source and str(source), "history": history and str(history)}, out, options, kinds)
    return MinedData(mined, kinds)


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern, re.IGNORECASE) if pattern else None
    except re.error as error:
        raise DataError(f"--fix-pattern: not a regular expression: {error}") from error


def _check(source: Path | None, options: MiningOptions) -> None:
    unknown = [name for name in options.tasks if name not in TASK_NAMES]
    problems = [f"--tasks: unknown task '{name}'.{did_you_mean(name, TASK_NAMES)}" for name in unknown]
    problems += [
        f"--languages: unknown language '{name}'.{did_you_mean(name, LANGUAGES)}"
        for name in options.languages
        if name not in LANGUAGES
    ]
    if options.exam_share and source is None:
        problems.append("--exam: an exam is made of the functions in FOLDER. Give FOLDER beside --history.")
    if options.exam_share and "python" not in options.languages:
        problems.append("--exam: an exam is made of Python functions, and --languages leaves them out")
    if TRANSLATE in options.tasks and len(options.languages) < 2:
        problems.append("--tasks translate: needs two languages at least")
    if options.context and not CONTEXT_TASKS & set(options.tasks):
        problems.append(f"--context: no task of --tasks shows it. Those that do: {', '.join(sorted(CONTEXT_TASKS))}.")
    if source and not source.is_dir():
        problems.append(f"{source}: no such folder")
    if options.valid_share + options.exam_share >= 1:
        problems.append("--valid-share and --exam-share leave nothing to train on: their sum must be below 1")
    if problems:
        raise DataError(*problems)


def _examine(mined: Mined, options: MiningOptions, on_progress: OnProgress) -> list[Record]:
    """Run the functions, add their examples to `mined`, and return the problems of the exam."""
    done = itertools.count(1)
    with open_pool() as pool:
        ran = run_functions(
            mined, options, pool, lambda: on_progress("running functions", next(done), len(mined.standalone))
        )
        problems = fair_problems(ran.problems, pool, ran.skips)
    if not problems:
        raise DataError(f"--exam: no function of the modules held out can be examined: {_most_common(ran.skips)}")
    mined.tasks[ASSERTS_TASK] = ran.asserts
    mined.skips.update(ran.skips)
    return problems


def fair_problems(problems: Sequence[Record], pool: Pool, skips: Counter[str]) -> list[Record]:
    """The problems whose own solution passes while all worthless answers fail. `skips` counts the others."""
    keys: dict[str, list[str]] = {}  # problem -> its own solution, then the worthless answers
    programs: dict[str, Program] = {}
    for benchmark in (exam.benchmark_of(kind, problems, "the exam") for kind in exam.KINDS):
        for question in benchmark.problems:
            answers = [exam.solution(question), *exam.worthless(question)]
            keys[question.id] = [f"{question.id}#{number}" for number in range(len(answers))]
            made = (benchmark.program(question, answer) for answer in answers)
            programs |= zip(keys[question.id], made, strict=True)
    limits = Limits(seconds=exam.SECONDS)
    passed = {key: result.status == "passed" for key, result in pool.run(programs.items(), limits)}
    fair = []
    for problem in problems:
        own, *others = (passed[key] for key in keys[problem["task_id"]])
        reason = "its own solution fails" if not own else "a worthless answer passes" if any(others) else ""
        if reason:
            skips[f"exam: {problem['kind']}: {reason}"] += 1
        else:
            fair.append(problem)
    return fair


def _write(mined: Mined, sources: Record, out: Path, options: MiningOptions, exam_kinds: Counter[str]) -> None:
    for name, task in mined.tasks.items():
        for file, records in (("train.jsonl", task.train), ("valid.jsonl", task.valid)):
            path = out / name / file
            if records:
                write_jsonl(path, records)
            else:  # reading an empty file is an error
                path.unlink(missing_ok=True)
    write_json(
        out / "mining.json",
        {
            **sources,
            "options": vars(options),
            "modules": mined.modules,
            "functions": mined.functions,
            "languages": dict(mined.languages),
            "licenses": dict(mined.licenses),
            "examples": {name: {"train": len(t.train), "valid": len(t.valid)} for name, t in mined.tasks.items()},
            "exam": dict(exam_kinds),
            "skipped": dict(mined.skips.most_common()),
        },
    )


def _most_common(skips: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in skips.most_common(3)) or "it has none"
