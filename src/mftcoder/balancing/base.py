"""What all balancers share, and how one is built from its section of the config: losses per task in, weights per task out.

After each optimizer step that is `due(step)`, the loop measures what `validation_rows(step)` and `gradient_layer(step)` ask for
(nothing, for most methods). It passes that to `observe`, together with the train losses summed since the last observation. The weights
that `observe` returns hold until the next one. What happens to the weight of a task that is absent from a step is
`loss.absent_task`. K is the number of tasks, in the order of the config. numpy only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from mftcoder.config.balancer import BalancerConfig, computed
from mftcoder.config.section import PositiveInt
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class TaskLosses:
    """Summed losses of each task over a step or a validation pass, with the numbers of tokens and samples."""

    loss_sum: Float  # [K] sum of the trained tokens' cross entropy, in nats; of a preference task of its pairs' losses
    tokens: Int  # [K] trained tokens; of a preference task its pairs
    samples: Int  # [K] samples with at least one trained token

    @property
    def mean(self) -> Float:
        """Mean token loss [K]; nan for a task with no trained token, never 0 (0 would read as solved)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.tokens > 0, self.loss_sum / np.maximum(self.tokens, 1), np.nan)

    def __add__(self, other: "TaskLosses") -> "TaskLosses":
        return TaskLosses(self.loss_sum + other.loss_sum, self.tokens + other.tokens, self.samples + other.samples)

    @staticmethod
    def zeros(num_tasks: int) -> "TaskLosses":
        """The sums before the first step."""
        return TaskLosses(np.zeros(num_tasks), np.zeros(num_tasks, np.int64), np.zeros(num_tasks, np.int64))


@dataclass(frozen=True)
class TaskWeights:
    """How much each task counts: non-negative, sum 1."""

    values: Float  # [K]

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
            raise ValueError(f"task weights must be finite, non-negative and not all zero, not {values}")
        total = values.sum()
        # A second division could change the last bit. A resumed run reads weights that were divided before.
        object.__setattr__(self, "values", values if abs(total - 1) < 1e-12 else values / total)


@dataclass(frozen=True)
class RunFacts:
    """What a balancer knows about the run before its first step."""

    weights: Float  # [K] the configured task weights; every method multiplies its own weights with them
    seed: int
    total_steps: int  # optimizer steps of the whole run
    rows_per_step: int  # rows of one optimizer step, over its micro-batches and ranks
    fresh_steps: Int  # [K] number of first steps in which each sample of the task is new to the model
    validation_rows: Int  # [K] rows of each task's validation set

    @property
    def num_tasks(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class ValidationRow:
    """One row of one task's validation set, to be measured without gradients. Rows of a task are counted from 0."""

    task: int
    row: int


class TaskBalancer(Protocol):
    """Chooses the task weights from the losses. Each method is one file in `methods/` and one line in `registry.BALANCERS`.

    A method is built as `Method(options, facts)`. The class attribute `options_type` names its options, a subclass of
    `BalancerConfig`; a method without options leaves it out and gets a `BalancerConfig`. Steps are counted from 1.
    """

    needs_validation: bool  # whether every task must have validation rows

    @property
    def signals(self) -> dict[str, Float]:
        """What the method measured (slopes, logits, ...), by name, [K] each, nan where unknown. For the logs."""

    def due(self, step: int) -> bool:
        """Whether `observe` is called after optimizer step `step`. On a GPU only due steps wait for the device."""

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The rows to measure after the due step `step`; () for none."""

    def gradient_layer(self, step: int) -> int | None:
        """The decoder layer on which to measure each task's gradient norm after the due step `step` (-1: the last); None for none.

        A method that ever names a layer has `reads_gradients = True` in its options.
        """

    def observe(
        self, step: int, train: TaskLosses, validation: TaskLosses | None, gradient_norms: Float | None = None
    ) -> TaskWeights:
        """The weights from the next step on. Called after each due step.

        `train` sums the steps since the last observation. `validation` sums the rows of `validation_rows(step)`; None without such
        rows. `gradient_norms` [K] are the gradient norms of the unweighted mean task losses, nan for an absent task. They are
        measured on the validation rows if there are any, else on rows of the step; None if `gradient_layer(step)` is None.
        """

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        """Receive the losses of the run's own validation after `step` (of all rows), which is measured anyway."""

    def state_dict(self) -> dict[str, Any]:
        """All that `observe` depends on, as values that JSON can hold. JSON keeps floats exactly."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`. The next weights are equal to the last bit."""


class Passive:
    """Base of the methods: due after each full interval, with nothing measured, logged or remembered."""

    needs_validation = False
    _interval = 1

    @property
    def signals(self) -> dict[str, Float]:
        return {}

    def due(self, step: int) -> bool:
        return step % self._interval == 0

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        return ()

    def gradient_layer(self, step: int) -> int | None:
        return None

    def evaluated(self, step: int, losses: TaskLosses) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class SignalOptions(BalancerConfig):
    """Options of methods that look at the losses of the training steps, or of a few validation rows of every task.

    The methods were published for train losses. The CoBa paper also runs FAMO, LBTW and GradNorm on validation losses (its starred rows).
    With `signal: validation` the same `val_batches` rows of each task are measured at every update. These methods compare a loss with an
    earlier one, and different rows would add noise to the comparison.
    """

    signal: Literal["train", "validation"] = "train"
    """Losses the method looks at: those of the training steps, or of val_batches validation rows of each task."""
    val_batches: PositiveInt | None = computed("1 with signal: validation")
    """Validation rows of each task measured at an update, the same rows each time."""

    @model_validator(mode="after")
    def _validation_is_read(self) -> "SignalOptions":
        if self.val_batches is not None and self.signal != "validation":
            raise ValueError("val_batches is for signal: validation")
        return self


class LossReader(Passive):
    """Base of methods that need one mean loss per task at each update, every `interval` steps."""

    remembered: ClassVar[tuple[str, ...]]
    """The attributes, without their underscore, that `observe` depends on: arrays and numbers."""

    def __init__(self, config: SignalOptions, facts: RunFacts, *, interval: int):
        self.facts = facts
        self.needs_validation = config.signal == "validation"
        self._interval = interval
        self._rows = stratified_rows(facts, 0, config.val_batches or 1) if self.needs_validation else ()

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The same rows each time, or none."""
        return self._rows

    def measured(self, train: TaskLosses, validation: TaskLosses | None) -> Float:
        """Mean token loss [K] of the signal; nan for an absent task."""
        if not self.needs_validation:
            return train.mean
        assert validation is not None, "the loop measures the rows that validation_rows names"
        return validation.mean

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers, as values that JSON can hold."""
        return {name: np.asarray(getattr(self, f"_{name}")).tolist() for name in self.remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.remembered:
            value = state[name]
            setattr(self, f"_{name}", as_array(value) if isinstance(value, list) else value)


def build_balancer(config: BalancerConfig, facts: RunFacts, task_names: tuple[str, ...]) -> TaskBalancer:
    """The method `config.name`. ConfigError names every task without validation rows if the method needs them."""
    balancer: TaskBalancer = BALANCERS.load(config.name)(config, facts)
    missing = [name for name, rows in zip(task_names, facts.validation_rows, strict=True) if rows == 0]
    if balancer.needs_validation and missing:
        raise ConfigError(
            *(
                f"tasks.{name}: has no validation rows, which balancer '{config.name}' needs for every task. "
                "Raise data.val_size or give the task `validation` files."
                for name in missing
            )
        )
    return balancer


def check_window(window: int | None, warmup_steps: int | None, update_interval: int | None = None) -> None:
    """ValueError for a window shorter than the warm-up, or (with `update_interval`) shorter than two updates."""
    if window is None:
        return
    if warmup_steps is not None and window < warmup_steps:
        raise ValueError(f"window ({window}) is shorter than warmup_steps ({warmup_steps}); make it at least as long")
    if update_interval is not None and window < 2 * update_interval:
        raise ValueError(f"window ({window}) holds fewer than two updates; make it at least {2 * update_interval}")


def weighted(facts: RunFacts, values: Float) -> TaskWeights:
    """The configured weights times the factors of a method, normalized to sum 1."""
    return TaskWeights(facts.weights * values)


def stratified_rows(facts: RunFacts, first: int, count: int) -> tuple[ValidationRow, ...]:
    """`count` rows of every task with validation rows, from row `first` on. After a task's last row comes its first one again."""
    return tuple(
        ValidationRow(task, (first + offset) % int(rows))
        for task, rows in enumerate(facts.validation_rows)
        if rows > 0
        for offset in range(min(count, int(rows)))
    )


def latest(previous: Float, now: Float) -> Float:
    """`now`, but the `previous` value of a task whose value is nan (absent) or infinite."""
    return np.where(np.isfinite(now), now, previous)


def ratio(now: Float, before: Float) -> Float:
    """now / before, element by element; 1 where `before` is 0: a task that was solved counts as unchanged, whatever its loss is now."""
    return np.divide(now, before, out=np.ones_like(now), where=before != 0)


def softmax(values: Float) -> Float:
    """exp(values) / sum over the last axis, without overflow."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def jacobian_product(probabilities: Float, vector: Float) -> Float:
    """Softmax Jacobian at `probabilities` times `vector`: p * (v - p.v)."""
    return probabilities * (vector - probabilities @ vector)


def as_lists(**arrays: Float | Int | None) -> dict[str, Any]:
    """Arrays as lists, which JSON can hold; None stays None."""
    return {name: None if array is None else array.tolist() for name, array in arrays.items()}


def as_array(value: Any) -> Float:
    """A list of `as_lists` as a float64 array."""
    return np.asarray(value, np.float64)
