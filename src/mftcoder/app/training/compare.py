"""`mft compare`: train with several balancers and seeds on the same data and budget, and each task alone; write one table.

Every run is a `mft train` process with a folder of its own below output_dir. Its config is fixed when the comparison starts, so later
edits of the file do not change it. A stopped comparison continues: finished runs are kept, and a started run resumes from its
checkpoint. Writes compare.json, compare.md and compare.html.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mftcoder.config.load import check_config, dump_yaml, load_config, with_overrides
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import TrainLoader, ValidationLoader
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.errors import CheckpointError, ConfigError, Interrupted, MftError
from mftcoder.jsonl import read_json, write_json, write_text
from mftcoder.log import say
from mftcoder.processes import following_environment
from mftcoder.reporting.comparison import Estimate, MethodResult, Outcome, outcome_of
from mftcoder.reporting.comparison import compare as compare_outcomes
from mftcoder.reporting.run_folder import RunRecord, read_run
from mftcoder.training.checkpoints.checkpoint import differing_fields

EVERY_RUN = (
    "train.early_stopping_patience=null",  # all methods get the same budget
    "train.logging_steps=1",  # overhead is measured on every step
    "train.save_total_limit=1",
    "train.report_to=[]",
)


@dataclass(frozen=True)
class PlannedRun:
    """One planned `mft train`. `method` is None for a single-task run."""

    name: str
    method: str | None
    task: str | None
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return self.config.output_path


@dataclass(frozen=True)
class Comparison:
    """The results of several methods on the same data."""

    results: tuple[MethodResult, ...]
    page: Path  # compare.html; compare.md and compare.json lie beside it

    def rows(self) -> list[dict[str, Any]]:
        """One row per method for a DataFrame: means over the seeds, and the losses of each task against training it alone."""
        return [_row(result) for result in self.results]


def _row(result: MethodResult) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in vars(result).items():
        if isinstance(value, dict):
            row |= {f"{name}/{task}": estimated.mean for task, estimated in value.items()}
        else:
            row[name] = value.mean if isinstance(value, Estimate) else value
    return row


def compare(
    config: RunConfig,
    balancers: Sequence[str] = ("uniform", "coba", "pace"),
    seeds: Sequence[int] = (0,),
    *,
    alone: bool = True,
    jobs: int = 1,
    command: str | None = None,
) -> Comparison:
    """Train with each balancer and seed on the same data, `jobs` runs at a time, and write the comparison. Finished runs are kept.

    A balancer may have options: `coba:update_interval=10`. With `alone`, each task is also trained by itself.
    `command` is shown on the page as what made it.
    """
    check_config(config)
    _check_lists(balancers, seeds, jobs)
    if config.train.eval_strategy == "no":
        raise ConfigError("train.eval_strategy: a comparison needs validation; give steps or epoch")
    planned = plan(config, balancers, seeds, alone=alone)
    _check_validation(config)
    places = [f"{number}/{len(planned)}" for number in range(1, len(planned) + 1)]
    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(_run, run, place) for run, place in zip(planned, places, strict=True)]
        try:
            for future in started:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    made_by = f"mftcoder.compare(config, {list(balancers)}, {list(seeds)}, alone={alone})"
    return _write(config, planned, command or made_by)


def _check_lists(balancers: Any, seeds: Any, jobs: Any) -> None:
    """ConfigError where a list is no list, or empty."""
    problems = []
    if isinstance(balancers, str) or not isinstance(balancers, Sequence) or not balancers:
        problems.append(f"balancers: give a list of at least one name, not {balancers!r}")
    if not isinstance(seeds, Sequence) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        problems.append(f"seeds: give a list of at least one whole number, not {seeds!r}")
    if not isinstance(jobs, int) or jobs < 1:
        problems.append(f"jobs: must be a whole number of at least 1, not {jobs!r}")
    if problems:
        raise ConfigError(*problems)


def plan(base: RunConfig, balancers: Sequence[str], seeds: Sequence[int], *, alone: bool) -> list[PlannedRun]:
    """Every run, ordered by seed, so that a stopped comparison has complete seeds. ConfigError lists all problems."""
    total_steps, steps_of_task = budget(base) if alone else (0, {})
    planned: list[PlannedRun] = []
    problems: list[str] = []

    def add(name: str, method: str | None, task: str | None, seed: int, own: Sequence[str]) -> None:
        folder = base.output_path / f"{name}-seed{seed}"
        every = (*EVERY_RUN, *own, f"train.seed={seed}", f"output_dir={json.dumps(str(folder))}")
        try:
            planned.append(PlannedRun(name, method, task, seed, with_overrides(base, every)))
        except MftError as error:
            problems.extend(error.problems)

    for seed in seeds:
        for spec in balancers:
            add(spec.replace(":", ",").replace("/", "_"), spec, None, seed, [f"balancer={balancer_override(spec)}"])
        for task, steps in steps_of_task.items():
            add(f"alone-{task}", None, task, seed, alone_overrides(base, task, steps, total_steps))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return planned


def balancer_override(spec: str) -> str:
    """`coba:update_interval=10` as the JSON of a balancer section."""
    name, *options = spec.split(":")
    section: dict[str, Any] = {"name": name}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(
                f"--balancers: '{spec}': write name or name:option=value, for example coba:update_interval=10"
            )
        section[key] = _number_or_text(value)
    return json.dumps(section)


def _number_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _check_validation(config: RunConfig) -> None:
    """ConfigError names every task without validation rows, whose losses could not be compared."""
    rows = zip(config.task_names, ValidationLoader(prepare_store(config), config).rows_of_task, strict=True)
    problems = [
        f"tasks.{name}: has no validation rows, which a comparison needs for every task" for name, n in rows if not n
    ]
    if problems:
        raise ConfigError(*(f"{line}. Raise data.val_size or give the task `validation` files." for line in problems))


def budget(config: RunConfig) -> tuple[int, dict[str, int]]:
    """Steps of the mixed run, and for each task the steps after which a run on that task alone has seen as many of its rows."""
    loader = TrainLoader(prepare_store(config), config)
    shares = zip(config.task_names, loader.task_fractions, strict=True)
    return loader.total_steps, {name: max(1, round(share * loader.total_steps)) for name, share in shares if share}


def alone_overrides(config: RunConfig, task: str, steps: int, total_steps: int) -> list[str]:
    """Overrides for a run on one task: as many validations as the mixed run, warm-up and decay in proportion, fixed weights."""
    shorter = steps / total_steps
    section = next(entry for entry in config.tasks if entry.name == task).model_dump(mode="json")
    own = [
        f"tasks={json.dumps([section])}",
        "balancer=uniform",
        "data.sampling=proportional",
        "train.metric_for_best_model=loss",
        f"train.max_steps={steps}",
        f"train.eval_steps={max(1, round(config.train.eval_steps * shorter))}",
        f"train.save_steps={max(1, round(config.train.save_steps * shorter))}",
    ]
    if config.train.warmup_steps >= 1:
        own.append(f"train.warmup_steps={round(config.train.warmup_steps * shorter)}")
    if config.train.decay_steps is not None and config.train.decay_steps >= 1:
        own.append(f"train.decay_steps={max(1, round(config.train.decay_steps * shorter))}")
    return own


def _run(run: PlannedRun, place: str) -> None:
    """Train unless it is done. The output goes to compare.log in the run folder."""
    label = f"{place} {run.folder.name}"
    if _is_finished(run):
        say(f"{label}: there already")
        return
    log, plan_file = run.folder / "compare.log", run.folder / "compare.yaml"
    write_text(plan_file, dump_yaml(run.config))
    say(f"{label} ...")
    started = time.perf_counter()
    with log.open("ab") as output:
        command = [sys.executable, "-m", "mftcoder", "train", str(plan_file)]
        environment = following_environment()
        code = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
    if code == 130:
        raise Interrupted("Go on")
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise MftError(f"{run.folder.name} ended with exit code {code}; all of it is in {log}", *lines)
    say(f"{label}: {time.perf_counter() - started:.0f} s")


def _is_finished(run: PlannedRun) -> bool:
    """Whether the run is complete; CheckpointError if another config made it."""
    if not (run.folder / "summary.json").exists():
        return False
    made_by = load_config(run.folder / "config.yaml").model_dump(mode="json")
    changes = differing_fields(made_by, run.config.model_dump(mode="json"))
    if changes:
        raise CheckpointError(
            *(f"{run.folder}: made by another config: {change}" for change in changes),
            "Choose another output_dir, or remove that folder.",
        )
    summary = read_json(run.folder / "summary.json")
    return isinstance(summary, dict) and summary.get("stopped_because") == "max_steps"


def _write(base: RunConfig, planned: Sequence[PlannedRun], command: str) -> Comparison:
    runs: dict[str, list[RunRecord]] = {}
    outcomes: dict[str, list[Outcome]] = {}
    alone: dict[tuple[str, int], float] = {}
    for run in planned:
        record = read_run(run.folder)
        outcome = outcome_of(record, run.seed)
        if run.method:
            runs.setdefault(run.method, []).append(record)
            outcomes.setdefault(run.method, []).append(outcome)
        else:
            assert run.task
            alone[run.task, run.seed] = outcome.best[run.task]
    results = compare_outcomes(outcomes, alone)
    references = {task: fmean(loss for (of, _), loss in alone.items() if of == task) for task, _ in alone}
    from mftcoder.reporting.comparison_page import render_comparison  # matplotlib takes a moment

    pages = render_comparison(results, runs, references, command)
    target = base.output_path / "compare.html"
    write_text(target, pages.html)
    write_text(target.with_suffix(".md"), pages.markdown)
    write_json(
        target.with_suffix(".json"),
        {
            "command": command,
            "results": [asdict(result) for result in results],
            "runs": {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()},
            "alone": [{"task": task, "seed": seed, "best": loss} for (task, seed), loss in alone.items()],
        },
    )
    return Comparison(tuple(results), target)
