"""A balancer for any training loop: mean losses by task name in, weights by task name out.

The methods are those of `mft train`, built by the same function. What `mft train` measures for them is here the caller's to
measure; `wants_validation` and `wants_gradient_norms` say when. Numpy only.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from pydantic import ValidationError

from mftcoder.balancing.base import Float, RunFacts, TaskLosses, TaskWeights, build_balancer
from mftcoder.config.balancer import BalancerConfig, read_balancer, suggest_option
from mftcoder.errors import ConfigError


class Balancer:
    """A method that sets task weights while a run goes on: coba, famo, pace, ...

        balancer = Balancer("coba", ["tests", "docs"], total_steps=1000)
        for step in range(1000):
            ...
            validation = held_out_losses(model) if balancer.wants_validation else None
            weights = balancer.observe({"tests": 1.2, "docs": 0.8}, validation)

    `observe` is called once after each step. `weights` are the tasks' own, which each method keeps as a factor.
    `epoch_steps`: after so many steps the samples repeat (None: they never do), which tells pace when train losses stop being
    those of unseen samples. `options` are the method's fields in the config section `balancer`.
    """

    def __init__(
        self,
        method: str,
        tasks: Sequence[str],
        *,
        total_steps: int,
        weights: Mapping[str, float] | None = None,
        validation_rows: int = 1,
        epoch_steps: int | None = None,
        seed: int = 0,
        **options: Any,
    ):
        self.tasks = task_names(tasks)
        _check_steps(total_steps=total_steps, epoch_steps=epoch_steps, validation_rows=validation_rows)
        own = dict.fromkeys(self.tasks, 1.0) if weights is None else weights
        self._weights = task_weights(own, self.tasks)
        facts = RunFacts(
            weights=np.array([float(own[task]) for task in self.tasks]),  # not divided by their sum: the method does it
            seed=seed,
            total_steps=total_steps,
            rows_per_step=1,
            fresh_steps=np.full(len(self.tasks), epoch_steps or total_steps, np.int64),
            validation_rows=np.full(len(self.tasks), validation_rows, np.int64),
        )
        self._name = method
        section = _section(method, options)
        self._method = build_balancer(section, facts, self.tasks)
        self._needs_evaluation = section.first_validation_user  # until it has one
        self._window = TaskLosses.zeros(len(self.tasks))
        self.step = 0
        """Steps that were observed."""

    @property
    def weights(self) -> dict[str, float]:
        """Each task's weight for the next step; their sum is 1."""
        return dict(zip(self.tasks, self._weights.values.tolist(), strict=True))

    @property
    def wants_validation(self) -> bool:
        """Whether the next `observe` needs validation losses."""
        step = self.step + 1
        return self._method.due(step) and bool(self._method.validation_rows(step))

    @property
    def wants_gradient_norms(self) -> bool:
        """Whether the next `observe` needs the norm of each task's gradient on the last shared layer."""
        step = self.step + 1
        return self._method.due(step) and self._method.gradient_layer(step) is not None

    def observe(
        self,
        train: Mapping[str, float],
        validation: Mapping[str, float] | None = None,
        gradient_norms: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """The weights of the next step, after a step with these mean token losses; a task that was absent is left out."""
        losses, measured = self._losses("train", train), validation and self._losses("validation", validation)
        if self._needs_evaluation and not self.step:
            raise ConfigError(f"balancer: {self._needs_evaluation}. Call evaluated() before the first observe()")
        missing = "validation losses" if self.wants_validation and not validation else ""
        missing = "gradient norms" if self.wants_gradient_norms and not gradient_norms else missing
        if missing:
            raise ConfigError(f"balancer: step {self.step + 1} needs {missing}")
        self.step, self._window = self.step + 1, self._window + losses
        if self._method.due(self.step):
            norms = self._array("gradient_norms", gradient_norms) if gradient_norms else None
            self._weights = self._method.observe(self.step, self._window, measured or None, norms)
            self._window = TaskLosses.zeros(len(self.tasks))
        return self.weights

    def evaluated(self, losses: Mapping[str, float]) -> None:
        """Tell the method of a validation of all rows: before the first step coba's variant `released` needs one, of all tasks."""
        if self._needs_evaluation and not self.step:
            _check_names("losses", losses, self.tasks, complete=True)
        self._method.evaluated(self.step, self._losses("losses", losses))
        self._needs_evaluation = None

    def state_dict(self) -> dict[str, Any]:
        """All that the next weights depend on, JSON-able."""
        window = {name: getattr(self._window, name).tolist() for name in ("loss_sum", "tokens", "samples")}
        return {
            "balancer": self._name,
            "tasks": list(self.tasks),
            "step": self.step,
            "weights": self._weights.values.tolist(),
            "window": window,
            "method": self._method.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. ConfigError for the state of another method, or of other tasks."""
        if not isinstance(state, Mapping) or not {"balancer", "tasks", "step", "weights", "window", "method"} <= set(
            state
        ):
            raise ConfigError("state: is not what state_dict() of a Balancer returned")
        if (state["balancer"], tuple(state["tasks"])) != (self._name, self.tasks):
            theirs, ours = f"{state['balancer']} over {list(state['tasks'])}", f"{self._name} over {list(self.tasks)}"
            raise ConfigError(f"state: is that of {theirs}; this balancer is {ours}")
        window = state["window"]
        self.step, self._weights = state["step"], TaskWeights(np.array(state["weights"]))
        counts = (np.array(window[name], np.int64) for name in ("tokens", "samples"))
        self._window = TaskLosses(np.array(window["loss_sum"]), *counts)
        self._method.load_state_dict(state["method"])

    def _losses(self, what: str, losses: Mapping[str, float]) -> TaskLosses:
        """Mean losses as those of one token a task; an absent task has none."""
        means = self._array(what, losses)
        seen = np.isfinite(means).astype(np.int64)
        return TaskLosses(np.where(seen, means, 0.0), seen, seen)

    def _array(self, what: str, values: Mapping[str, float]) -> Float:
        _check_names(what, values, self.tasks)
        return np.array([_number(what, task, values[task]) if task in values else np.nan for task in self.tasks])


def _section(method: str, options: Mapping[str, Any]) -> BalancerConfig:
    """The method's options. ConfigError for an unknown method or option, and for values that do not fit."""
    section = {"name": method, **options}
    try:
        found = read_balancer(section)
        return found if isinstance(found, BalancerConfig) else BalancerConfig.model_validate(found)
    except ValidationError as error:
        lines = [_line(detail, section) for detail in error.errors(include_url=False)]
        raise ConfigError(*dict.fromkeys(lines)) from error


def _line(detail: Any, section: Mapping[str, Any]) -> str:
    field = ".".join(map(str, ("balancer", *detail["loc"])))
    if detail["type"] == "extra_forbidden":
        return f"{field}: unknown option.{suggest_option(str(detail['loc'][-1]), section)}"
    return f"{field}: {str(detail['msg']).removeprefix('Value error, ')}"


def task_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks of an objective or a balancer. ConfigError unless they are one or more different names."""
    if isinstance(tasks, str) or not isinstance(tasks, Iterable):
        raise ConfigError(f"tasks: give a list of names, not {tasks!r}")
    names = tuple(tasks)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"tasks: must be one or more different names, not {list(names)}")
    return names


def task_weights(weights: Mapping[str, float], tasks: Sequence[str]) -> TaskWeights:
    """The weights by name, checked. ConfigError for other names than `tasks`, and for weights that are no weights."""
    _check_names("weights", weights, tasks, complete=True)
    values = [_number("weights", task, weights[task]) for task in tasks]
    if not all(0 <= value < np.inf for value in values) or not any(values):
        raise ConfigError(f"weights: must be finite, not negative and not all zero, not {dict(weights)}")
    return TaskWeights(np.array(values))


def _check_steps(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is None and name == "epoch_steps":
            continue
        if not isinstance(value, Integral) or value < 1:
            raise ConfigError(f"{name}: must be a whole number of at least 1, not {value!r}")


def _number(what: str, task: str, value: Any) -> float:
    """A number, also as a tensor of one element, which may have a gradient."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise ConfigError(f"{what}: {task}: must be a number, not {value!r}; leave a task out that was absent")
    return float(value)


def _check_names(what: str, values: Mapping[str, float], tasks: Sequence[str], *, complete: bool = False) -> None:
    """ConfigError for names that are no tasks, and, if `complete`, for tasks that are missing."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{what}: give a dict by task name, not {values!r}")
    unknown = sorted(set(values) - set(tasks))
    missing = sorted(set(tasks) - set(values)) if complete else []
    if unknown or missing:
        raise ConfigError(f"{what}: are those of {sorted(values)}; the tasks are {sorted(tasks)}")
