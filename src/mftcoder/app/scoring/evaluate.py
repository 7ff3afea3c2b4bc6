"""`mft evaluate`: run the answers in generations files and score them. Needs no model and no torch.

Writes `metrics_{task}_{model}.json` with the results of every problem, and `results_{task}_{model}.jsonl`, the journal from which a
stopped evaluation continues. Programs run only through execution.pool.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mftcoder import __version__
from mftcoder.app.scoring.options import EvaluateOptions, check_names
from mftcoder.benchmarks.answers.generations import model_of, read_generations, task_of
from mftcoder.benchmarks.answers.python_code import with_imports
from mftcoder.benchmarks.assembly import Assembled, assemble_all
from mftcoder.benchmarks.catalogue import load, tasks
from mftcoder.benchmarks.journal import KEY_FILE, Journal, own_secret
from mftcoder.benchmarks.passk import INTERVAL, PassAtK, estimate
from mftcoder.benchmarks.problem import Benchmark
from mftcoder.cache import cache_root
from mftcoder.errors import BenchmarkError, ConfigError, ExecutionError, Interrupted, MftError, UnjudgedError
from mftcoder.execution.isolation import container
from mftcoder.execution.isolation.container import container_engine
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.sandbox import STATUSES, ExecutionResult, Limits, Program, shortened
from mftcoder.jsonl import read_json, write_json
from mftcoder.log import OnProgress, no_progress, say, warn
from mftcoder.processes import sigterm_as_interrupt

_GO_ON = "The same command goes on where this one was."


@dataclass(frozen=True)
class Score:
    """One evaluated file."""

    task: str
    model: str
    scores: tuple[PassAtK, ...]  # () if a program could not be judged
    metrics_path: Path
    unjudged: int = 0  # programs whose sandbox failed, not because of the answer


@dataclass(frozen=True)
class _Work:
    """One generations file with its benchmark and its answers."""

    path: Path
    benchmark: Benchmark
    model: str
    answers: list[list[str]]
    limits: Limits
    out: Path

    @property
    def name(self) -> str:
        """Part of the names of the files that are written: `{task}_{model}`."""
        return f"{self.benchmark.name}_{self.model}"

    def programs(self) -> dict[str, Assembled]:
        """`problem#sample` -> its program, or the result of an answer that contains no program."""
        answers = {
            f"{problem.id}#{sample}": (problem, answer)
            for problem, answers in zip(self.benchmark.problems, self.answers, strict=True)
            for sample, answer in enumerate(answers)
        }
        return assemble_all(self.benchmark, answers)


class Scores(list[Score]):
    """The result of an evaluation: one Score per file."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per score for a DataFrame: task, model, k, value, low, high, problems, samples_per_problem."""
        return [
            {"task": score.task, "model": score.model, **asdict(estimated)}
            for score in self
            for estimated in score.scores
        ]


def evaluate(
    files: str | Path | Sequence[str | Path], *, on_progress: OnProgress = no_progress, **options: Any
) -> Scores:
    """Score every generations file. All files are read and checked before the first program runs.

    `options` are the fields of EvaluateOptions. If a program could not be judged, its file has no score, and UnjudgedError is raised
    at the end; the error holds all scores.
    """
    given = [files] if isinstance(files, str | Path) else files
    if not isinstance(given, list | tuple) or not given or not all(isinstance(file, str | Path) for file in given):
        raise ConfigError(f"files: give one or more paths of generations files, not {files!r}")
    paths = [Path(file) for file in given]
    check_names(EvaluateOptions, options)
    chosen = EvaluateOptions(**options)
    inside = _evaluate_in_container if chosen.sandbox == "container" else _evaluate_here
    scores = Scores(inside(paths, chosen, on_progress))
    problems = [
        f"{score.task} {score.model}: {score.unjudged} programs could not be judged, so there is no score; "
        f"{score.metrics_path} says which. Mend the machine; the same command runs only those again."
        for score in scores
        if score.unjudged
    ]
    if problems:
        raise UnjudgedError(*problems, scores=scores)
    return scores


def _evaluate_here(paths: Sequence[Path], options: EvaluateOptions, on_progress: OnProgress) -> list[Score]:
    work = [_prepare(path, options) for path in paths]
    _refuse_equal_names(work)
    languages = {problem.language for item in work for problem in item.benchmark.problems}
    by_scheduler = Interrupted(_GO_ON, requeue=True)
    with sigterm_as_interrupt(by_scheduler), open_pool(options.sandbox, options.workers, languages) as pool:
        say(f"sandbox: {pool.level} ({', '.join(pool.covers)}), {pool.size} workers")
        if pool.level == "process":
            warn("warning: level process is the last resort; `mft doctor` says what a stronger one needs.")
        return [_evaluate_file(item, pool, options, on_progress) for item in work]


def _refuse_equal_names(work: Sequence[_Work]) -> None:
    """Raise an error if two files would write the same results file."""
    first: dict[Path, Path] = {}
    problems = []
    for item in work:
        target = (item.out / f"metrics_{item.name}.json").resolve()
        other = first.setdefault(target, item.path)
        if other is not item.path:
            problems.append(
                f"{item.path}: has the task and model of {other}, and {target.name} can hold one of them. Rename one."
            )
    if problems:
        raise MftError.collect(problems)


def _evaluate_in_container(paths: Sequence[Path], options: EvaluateOptions, _: OnProgress) -> list[Score]:
    """Run the same command in a container, with the files mounted read-only. Log its lines and read its metrics files."""
    engine = container_engine()
    if engine is None:
        raise ExecutionError(
            "sandbox level 'container' needs podman or docker; neither is here. --sandbox auto takes the next best level."
        )
    command = container_command(engine, paths, options)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as done:
        for line in done.stderr or ():
            say(line.rstrip())
    if done.returncode in (125, 127):  # the container engine failed
        raise ExecutionError(f"{engine} could not run the image {container.IMAGE}. Build it with: {container.BUILD}")
    if done.returncode not in (0, UnjudgedError.exit_code):
        raise ExecutionError(
            f"the evaluation in the container ended with exit code {done.returncode}; its lines stand above"
        )
    return [_read_score(path, options) for path in paths]


def _read_score(path: Path, options: EvaluateOptions) -> Score:
    """The score in the metrics file of an evaluated `path`."""
    task = options.task or task_of(path, tasks())
    assert task is not None, "the evaluation has found its task"
    model = model_of(path, task)
    metrics_path = (options.out or path.parent) / f"metrics_{task}_{model}.json"
    record = read_json(metrics_path)
    scores = tuple(PassAtK(**score) for score in record["scores"].values())
    return Score(task, model, scores, metrics_path, record["programs"]["sandbox_error"])


def container_command(engine: str, paths: Sequence[Path], options: EvaluateOptions) -> list[str]:
    """The command line that evaluates `paths` in a container, as the calling user."""
    missing = [f"{path}: no such file" for path in paths if not path.is_file()]
    if missing:
        raise MftError.collect(missing)
    out = options.out or paths[0].parent
    out.mkdir(parents=True, exist_ok=True)
    mounts = [container.Mount(path, f"/in/{path.name}") for path in paths] + [
        container.Mount(out, "/out", writable=True)
    ]
    own_secret()  # makes the key without which the next container would not trust the journal of a stopped one
    if (key := cache_root() / KEY_FILE).is_file():
        mounts.append(container.Mount(key, f"{container.CACHE}/{KEY_FILE}"))
    arguments = ["evaluate", *(f"/in/{path.name}" for path in paths), "--out", "/out", "--sandbox", "auto"]
    arguments += ["-k", ",".join(map(str, options.k)), "--memory-mb", str(options.memory_mb)]
    given = {
        "--task": options.task,
        "--workers": options.workers,
        "--timeout": options.timeout,
        "--limit": options.limit,
        "--imports": options.imports,
    }
    arguments += [part for name, value in given.items() if value is not None for part in (name, str(value))]
    if options.data_dir:
        mounts.append(container.Mount(options.data_dir, "/data"))
        arguments += ["--data-dir", "/data"]
    memory_mb = (options.workers or os.cpu_count() or 1) * (options.memory_mb + 1024) + 1024
    return container.run_command(engine, mounts, arguments, memory_mb=memory_mb, user=f"{os.getuid()}:{os.getgid()}")


def _prepare(path: Path, options: EvaluateOptions) -> _Work:
    task = options.task or task_of(path, tasks())
    if task is None:
        raise BenchmarkError(f"{path}: which task is this? Give --task, or name the file generations_TASK_MODEL.json.")
    benchmark = load(task, options.data_dir, options.limit)
    if options.imports:
        benchmark = with_imports(benchmark, options.imports)
    answers = read_generations(path, benchmark)
    fewest = min(map(len, answers))
    if fewest < max(options.k):
        raise BenchmarkError(
            f"{path}: pass@{max(options.k)} needs {max(options.k)} samples a problem; one has {fewest}"
        )
    limits = Limits(seconds=options.timeout or benchmark.family.timeout_seconds, memory_mb=options.memory_mb)
    return _Work(path, benchmark, model_of(path, task), answers, limits, options.out or path.parent)


def _evaluate_file(work: _Work, pool: Pool, options: EvaluateOptions, on_progress: OnProgress) -> Score:
    settings = {"limits": asdict(work.limits), **_circumstances(work, pool), "mftcoder": __version__}
    try:
        programs = work.programs()
        with Journal(work.out / f"results_{work.name}.jsonl", settings) as journal:
            results = _run(programs, journal, pool, work.limits, on_progress, work.name)
        scores, record = _metrics(work, results, pool, options.k)
        metrics_path = work.out / f"metrics_{work.name}.json"
        write_json(metrics_path, record)
    except KeyboardInterrupt as stop:
        raise Interrupted(_GO_ON) from stop
    except OSError as error:
        raise ExecutionError(
            f"{error.filename or work.out}: {error.strerror}. What is done is kept; mend it and run again."
        ) from error
    if cheated := record["programs"]["cheated"]:
        what = f"{work.benchmark.name}, {work.model}: {cheated} answers"
        warn(f"{what} pass wrong tests too (cheated), and count as not passed.")
    return Score(work.benchmark.name, work.model, scores, metrics_path, record["programs"]["sandbox_error"])


def _circumstances(work: _Work, pool: Pool) -> dict[str, Any]:
    """What a result depends on besides the program and its limits."""
    return {"data": work.benchmark.source, **work.benchmark.family.notes, "sandbox": pool.level}


def _run(
    assembled: dict[str, Assembled], journal: Journal, pool: Pool, limits: Limits, on_progress: OnProgress, title: str
) -> dict[str, ExecutionResult]:
    """All results. Programs with a result in the journal do not run again, and equal programs run once."""
    programs = {key: program for key, program in assembled.items() if isinstance(program, Program)}
    prints = {key: program.fingerprint for key, program in programs.items()}
    known = {key: journal.known[key, prints[key]] for key in programs if (key, prints[key]) in journal.known}
    results = known | {key: result for key, result in assembled.items() if isinstance(result, ExecutionResult)}
    _say_what_is_known(journal, len(known), len(programs), title)
    equal: dict[str, list[str]] = {}
    for key in programs:
        if key not in results:
            equal.setdefault(prints[key], []).append(key)
    waiting = ((keys[0], programs[keys[0]]) for keys in equal.values())
    ran = ((key, result) for first, result in pool.run(waiting, limits) for key in equal[prints[first]])
    for key, result in _with_progress(ran, len(assembled), len(results), on_progress, title):
        results[key] = shortened(result)
        journal.add(key, prints[key], results[key])
    return results


def _say_what_is_known(journal: Journal, known: int, total: int, title: str) -> None:
    if known:
        say(f"{title}: {known} of {total} programs are already done")
    if journal.refused:
        say(
            f"{title}: {journal.refused} results of {journal.path.name} were not written by this user's mft on this machine, "
            "or were changed since: these programs run again"
        )


def _with_progress(
    results: Iterable[tuple[str, ExecutionResult]], total: int, done: int, on_progress: OnProgress, title: str
) -> Iterator[tuple[str, ExecutionResult]]:
    passed = 0
    on_progress(title, done, total)
    for count, (key, result) in enumerate(results, start=1):
        passed += result.status == "passed"
        on_progress(title, done + count, total, f"{passed}/{count} pass")
        yield key, result


def _metrics(
    work: _Work, results: dict[str, ExecutionResult], pool: Pool, k: Sequence[int]
) -> tuple[tuple[PassAtK, ...], dict[str, Any]]:
    """The scores, and the content of the metrics file. There is no score unless every sample of every problem could be judged."""
    rows: list[dict[str, Any]] = []
    for problem, answers in zip(work.benchmark.problems, work.answers, strict=True):
        statuses = [results[f"{problem.id}#{sample}"].status for sample in range(len(answers))]
        rows.append({"id": problem.id, "passed": statuses.count("passed"), "statuses": statuses})
    samples, passed = [len(row["statuses"]) for row in rows], [row["passed"] for row in rows]
    complete = not any(result.status == "sandbox_error" for result in results.values())
    scores = tuple(estimate(samples, passed, size) for size in k) if complete else ()
    by_status = Counter(result.status for result in results.values())
    record = {
        "task": work.benchmark.name,
        "model": work.model,
        "scores": {f"pass@{score.k}": asdict(score) for score in scores},
        "interval": INTERVAL,
        "programs": {status: by_status.get(status, 0) for status in STATUSES},
        "settings": {
            **_circumstances(work, pool),
            "limits": asdict(work.limits),
            "sandbox covers": list(pool.covers),
            "mftcoder": __version__,
        },
        "problems": rows,
    }
    return scores, record
