"""`mft compare`: the same data and budget under several balancers and seeds, and each task alone; one table of all of it.

Every run is a `mft train` of its own in a folder below output_dir, with a config that is fixed when the comparison starts, so that editing
the file meanwhile does not mix two comparisons. One that was cut short goes on where it stopped: finished runs are kept, a
started one resumes from its checkpoint. Writes compare.json, compare.md and compare.html.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table as ConsoleTable

from mftcoder.config.load import dump_yaml, load_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import TrainLoader, ValidationLoader
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.errors import CheckpointError, ConfigError, Interrupted, MftError
from mftcoder.jsonl import read_json, write_json, write_text
from mftcoder.processes import following_environment
from mftcoder.reporting.comparison import Outcome, compare, outcome_of
from mftcoder.reporting.comparison_page import methods_table, render_comparison
from mftcoder.reporting.run_folder import RunRecord, read_run
from mftcoder.reporting.tables import Table
from mftcoder.training.checkpoints.checkpoint import differing_fields

EVERY_RUN = (
    "train.early_stopping_patience=null",  # all methods get the same budget
    "train.logging_steps=1",  # overhead is measured on every step
    "train.save_total_limit=1",
    "train.report_to=[]",
)


@dataclass(frozen=True)
class PlannedRun:
    """One `mft train` to be. `method` is None for a single-task run."""

    name: str
    method: str | None
    task: str | None
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.config.output_path


def compare_balancers(
    config_path: Path,
    overrides: Sequence[str],
    balancers: Sequence[str],
    seeds: Sequence[int],
    *,
    alone: bool,
    jobs: int = 1,
) -> Path:
    """Run what is missing, `jobs` runs at a time, write the comparison, print its table; returns the HTML file."""
    base = load_config(config_path, overrides)
    if base.train.eval_strategy == "no":
        raise ConfigError("train.eval_strategy: a comparison needs validation; give steps or epoch")
    planned = plan(config_path, base, overrides, balancers, seeds, alone=alone)
    _check_validation(base)
    console = Console()
    places = [f"{number}/{len(planned)}" for number in range(1, len(planned) + 1)]
    with ThreadPoolExecutor(jobs) as pool:
        started = [pool.submit(_run, run, console, place) for run, place in zip(planned, places, strict=True)]
        try:
            for future in started:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _write(base, planned, console)


def plan(
    config_path: Path,
    base: RunConfig,
    overrides: Sequence[str],
    balancers: Sequence[str],
    seeds: Sequence[int],
    *,
    alone: bool,
) -> list[PlannedRun]:
    """Every run, seeds outermost, so that a comparison cut short has whole seeds. ConfigError lists all misfits."""
    total_steps, steps_of_task = budget(base) if alone else (0, {})
    planned: list[PlannedRun] = []
    problems: list[str] = []

    def add(name: str, method: str | None, task: str | None, seed: int, own: Sequence[str]) -> None:
        folder = base.output_path / f"{name}-seed{seed}"
        every = (*overrides, *EVERY_RUN, *own, f"train.seed={seed}", f"output_dir={json.dumps(str(folder))}")
        try:
            planned.append(PlannedRun(name, method, task, seed, load_config(config_path, every)))
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
    """ConfigError names every task whose runs would have no validation loss to compare."""
    rows = zip(config.task_names, ValidationLoader(prepare_store(config), config).rows_of_task, strict=True)
    problems = [
        f"tasks.{name}: has no validation rows, which a comparison needs for every task" for name, n in rows if not n
    ]
    if problems:
        raise ConfigError(*(f"{line}. Raise data.val_size or give the task `validation` files." for line in problems))


def budget(config: RunConfig) -> tuple[int, dict[str, int]]:
    """Steps of the mixed run, and for each task the steps in which a run of its own sees as many of its rows."""
    loader = TrainLoader(prepare_store(config), config)
    shares = zip(config.task_names, loader.task_fractions, strict=True)
    return loader.total_steps, {name: max(1, round(share * loader.total_steps)) for name, share in shares if share}


def alone_overrides(config: RunConfig, task: str, steps: int, total_steps: int) -> list[str]:
    """One task by itself: as many validations as the mixed run has, the warm-up in proportion, fixed weights."""
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
    return own


def _run(run: PlannedRun, console: Console, place: str) -> None:
    """Train, or find it trained. The output goes to compare.log in the run's folder."""
    label = f"{place} {run.folder.name}"
    if _is_finished(run):
        console.print(f"{label}: there already", highlight=False)
        return
    log, plan_file = run.folder / "compare.log", run.folder / "compare.yaml"
    write_text(plan_file, dump_yaml(run.config))
    console.print(f"{label} ...", highlight=False)
    started = time.perf_counter()
    with log.open("ab") as output:
        command = [sys.executable, "-m", "mftcoder", "train", str(plan_file)]
        environment = following_environment()
        code = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
    if code == 130:
        raise Interrupted(f"Go on with: {shlex.join(['mft', *sys.argv[1:]])}")
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise MftError(f"{run.folder.name} ended with exit code {code}; all of it is in {log}", *lines)
    console.print(f"{label}: {time.perf_counter() - started:.0f} s", highlight=False)


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
    return bool(read_json(run.folder / "summary.json").get("stopped_because") == "max_steps")


def _write(base: RunConfig, planned: Sequence[PlannedRun], console: Console) -> Path:
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
    results = compare(outcomes, alone)
    command = shlex.join(["mft", *sys.argv[1:]])
    references = {task: fmean(loss for (of, _), loss in alone.items() if of == task) for task, _ in alone}
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
    _print(methods_table(results), console)
    console.print(f"{target}\n{target.with_suffix('.md')}\n{target.with_suffix('.json')}", highlight=False)
    return target


def _print(table: Table, console: Console) -> None:
    """The table on its side: a column a method fits a terminal."""
    shown = ConsoleTable()
    shown.add_column("")
    names, *measures = zip(*table.rows, strict=True)
    for name in names:
        shown.add_column(name, justify="right")
    for title, values in zip(table.columns[1:], measures, strict=True):
        shown.add_row(title, *values)
    console.print(shown)
