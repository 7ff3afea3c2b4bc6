"""Compare methods on the same tasks: how well each kept the tasks in balance, in numbers.

There is one run per method and seed, and as a reference one run on each task alone per seed. Losses are validation losses. "Best" is
a task's lowest loss at any validation; "kept" is its loss in the checkpoint with the lowest mean over tasks, which a user would keep.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from mftcoder.errors import DataError
from mftcoder.reporting.run_folder import RunRecord, series

WARM_UP_STEPS = 3  # first steps of a run, excluded from its speed because caches and compilers are cold


@dataclass(frozen=True)
class Outcome:
    """The numbers of one run."""

    seed: int
    steps: int
    best: dict[str, float]  # task -> lowest validation loss
    best_step: dict[str, float]
    kept_step: float
    kept: dict[str, float]
    last: dict[str, float]
    seconds_per_step: float  # with the balancer's work, without validation
    balancing_share: float  # the fraction of these seconds spent on measuring and choosing weights

    @property
    def spread(self) -> float:
        """The distance between the first and the last best step of the tasks, as a fraction of the run."""
        steps = self.best_step.values()
        return (max(steps) - min(steps)) / self.steps

    @property
    def regression(self) -> float:
        """Mean over tasks of the relative distance of the last loss above the task's best."""
        return fmean(self.last[task] / self.best[task] - 1 for task in self.best)

    @property
    def compromise(self) -> float:
        """Mean over tasks of the relative distance of the kept loss above the task's best: the cost of one checkpoint for all."""
        return fmean(self.kept[task] / self.best[task] - 1 for task in self.best)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard deviation (None with one seed)."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class MethodResult:
    """One method over its seeds. Losses are relative to the task trained alone: -0.02 is 2% lower than alone."""

    name: str
    seeds: int
    best_against_alone: dict[str, Estimate]  # empty without single-task runs
    kept_against_alone: dict[str, Estimate]
    kept_loss: Estimate  # mean over tasks
    rank: Estimate  # mean over tasks of the method's place by best loss, 1 is first
    spread: Estimate
    regression: Estimate
    compromise: Estimate
    step_time_against_uniform: Estimate | None
    balancing_share: Estimate


def outcome_of(run: RunRecord, seed: int) -> Outcome:
    """The outcome of one run; DataError if it was never validated or trained."""
    curves = {task: series(run.validation, "losses", task) for task in run.tasks}
    mean = series(run.validation, "loss")
    timed = series(run.train, "seconds")
    cold = WARM_UP_STEPS if len(timed) > 2 * WARM_UP_STEPS else 0
    seconds = [value for step, value in timed if step > cold]
    if not mean or not seconds or not all(curves.values()):
        raise DataError(f"{run.folder}: no validation losses of every task in metrics.jsonl")
    kept_step = min(mean, key=lambda point: (point[1], point[0]))[0]
    best = {task: min(points, key=lambda point: (point[1], point[0])) for task, points in curves.items()}
    balancing = sum(value for step, value in series(run.balance, "seconds") if step > cold)
    return Outcome(
        seed=seed,
        steps=int(max(step for step, _ in timed)),
        best={task: loss for task, (_, loss) in best.items()},
        best_step={task: step for task, (step, _) in best.items()},
        kept_step=kept_step,
        kept={task: dict(points)[kept_step] for task, points in curves.items()},
        last={task: points[-1][1] for task, points in curves.items()},
        seconds_per_step=fmean(seconds),
        balancing_share=balancing / sum(seconds),
    )


def compare(methods: dict[str, list[Outcome]], alone: dict[tuple[str, int], float]) -> list[MethodResult]:
    """One result per method. `alone` maps (task, seed) to the best loss of the task trained by itself; it may be empty."""
    ranks = _ranks(methods)
    uniform = {outcome.seed: outcome.seconds_per_step for outcome in methods.get("uniform", [])}
    return [
        MethodResult(
            name=name,
            seeds=len(outcomes),
            best_against_alone=_against([(o.seed, o.best) for o in outcomes], alone),
            kept_against_alone=_against([(o.seed, o.kept) for o in outcomes], alone),
            kept_loss=estimate(fmean(o.kept.values()) for o in outcomes),
            rank=estimate(ranks[name, o.seed] for o in outcomes),
            spread=estimate(o.spread for o in outcomes),
            regression=estimate(o.regression for o in outcomes),
            compromise=estimate(o.compromise for o in outcomes),
            step_time_against_uniform=_ratio([(o.seed, o.seconds_per_step) for o in outcomes], uniform),
            balancing_share=estimate(o.balancing_share for o in outcomes),
        )
        for name, outcomes in methods.items()
    ]


def estimate(values: Iterable[float]) -> Estimate:
    found = list(values)
    return Estimate(fmean(found), stdev(found) if len(found) > 1 else None)


def _ranks(methods: dict[str, list[Outcome]]) -> dict[tuple[str, int], float]:
    """(method, seed) -> mean over tasks of its place by best loss among the methods of that seed; ties get the mean place."""
    places = {}
    for seed in {outcome.seed for outcomes in methods.values() for outcome in outcomes}:
        best = {name: o.best for name, outcomes in methods.items() for o in outcomes if o.seed == seed}
        for name, losses in best.items():
            places[name, seed] = fmean(
                _place(losses[task], [other[task] for other in best.values()]) for task in losses
            )
    return places


def _place(value: float, among: Sequence[float]) -> float:
    return 1 + sum(other < value for other in among) + (sum(other == value for other in among) - 1) / 2


def _against(losses: list[tuple[int, dict[str, float]]], alone: dict[tuple[str, int], float]) -> dict[str, Estimate]:
    tasks = [task for task in losses[0][1] if all((task, seed) in alone for seed, _ in losses)]
    return {task: estimate(found[task] / alone[task, seed] - 1 for seed, found in losses) for task in tasks}


def _ratio(seconds: list[tuple[int, float]], uniform: dict[int, float]) -> Estimate | None:
    ratios = [value / uniform[seed] for seed, value in seconds if seed in uniform]
    return estimate(ratios) if ratios else None
