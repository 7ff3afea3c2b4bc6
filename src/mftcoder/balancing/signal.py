"""Which losses a method looks at: the training steps' own, or a few validation rows of every task.

The published methods were proposed on train losses; the CoBa paper also runs FAMO, LBTW and GradNorm on validation losses (its
starred rows). With `signal: validation` the same `val_batches` rows of each task are measured at every update: these methods
compare a loss with an earlier one, and the same rows compare without the noise of different ones. CoBa has its own rule.
"""

from mftcoder.balancing.base import DeafToEvaluations, Float, RunFacts, TaskLosses, ValidationRow, stratified_rows
from mftcoder.config.schema import BalancerConfig


class LossReader(DeafToEvaluations):
    """The measuring half of the protocol for methods that need one mean loss per task at each update; they inherit it."""

    def __init__(self, config: BalancerConfig, facts: RunFacts, *, default_interval: int = 1):
        self.facts = facts
        self.needs_validation = config.signal == "validation"
        self._interval = config.update_interval or default_interval
        self._rows = stratified_rows(facts, 0, config.val_batches or 1) if self.needs_validation else ()

    @property
    def signals(self) -> dict[str, Float]:
        """Nothing beside the losses themselves."""
        return {}

    def due(self, step: int) -> bool:
        """After each full interval."""
        return step % self._interval == 0

    def validation_rows(self, step: int) -> tuple[ValidationRow, ...]:
        """The same rows each time, or none."""
        return self._rows

    def needs_gradients(self, step: int) -> bool:
        """Never."""
        return False

    def measured(self, train: TaskLosses, validation: TaskLosses | None) -> Float:
        """Mean token loss [K] of the chosen signal; nan for an absent task."""
        if not self.needs_validation:
            return train.mean
        assert validation is not None, "the loop measures the rows that validation_rows names"
        return validation.mean
