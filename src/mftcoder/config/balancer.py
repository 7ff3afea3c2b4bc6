"""The balancer section of the config: the method's name and its options, checked against each other.

An option that is left out takes the method's own default, which stands in the method's docstring. An option the method does not
have is an error, not ignored. The published `coba_*` names are accepted. Builds nothing: `balancing/build.py` does.
"""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from mftcoder.config.section import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from mftcoder.registry import BALANCERS, did_you_mean

PUBLISHED_NAMES = {
    "coba_warmup_steps": "warmup_steps",
    "coba_history_length": "window",
    "coba_tau": "tau",
    "coba_update_interval": "update_interval",
    "coba_sample_valid_num": "val_batches",
}

OPTIONS = {
    "uniform": (),
    "coba": ("val_batches", "update_interval", "warmup_steps", "window", "tau", "variant"),
    "famo": ("signal", "val_batches", "update_interval", "learning_rate", "weight_decay", "variant"),
    "dwa": ("signal", "val_batches", "update_interval", "temperature"),
    "lbtw": ("signal", "val_batches", "update_interval", "alpha", "window"),
    "gradnorm": ("signal", "val_batches", "update_interval", "alpha", "learning_rate", "layer"),
    "uncertainty": ("signal", "val_batches", "update_interval", "learning_rate"),
    "random": ("update_interval", "temperature"),
    "selfpaced": ("val_batches", "update_interval", "warmup_steps", "window", "gain"),
    "pace": ("update_interval", "warmup_steps", "window", "gain", "floor", "val_share", "val_rows"),
}

SLOPE_METHODS = ("coba", "selfpaced")
"""Methods that fit lines to validation losses of their own."""


class BalancerConfig(Section):
    """How task weights move during training."""

    name: str = "uniform"
    """Method; uniform keeps the tasks' configured weights."""
    signal: Literal["train", "validation"] | None = None
    """Losses the method looks at: those of the training steps (default), or of val_batches validation rows of each task."""
    val_batches: PositiveInt | None = None
    """Validation rows of each task measured at an update (default 1): the next ones each time with coba and selfpaced, else the same ones."""
    update_interval: PositiveInt | None = None
    """Optimizer steps between updates of the weights."""
    warmup_steps: NonNegativeInt | None = None
    """First optimizer steps in which the configured weights are kept."""
    window: PositiveInt | None = None
    """Optimizer steps the method looks back: slopes are fitted over it (coba, selfpaced, pace), or references renewed after it (lbtw)."""
    tau: PositiveFloat | None = None
    """Sharpness of CoBa's divergence factor; 5 in the paper."""
    variant: Literal["paper", "released"] | None = None
    """coba, famo: the formulas of the paper (default) or the arithmetic of the published code."""
    temperature: PositiveFloat | None = None
    """dwa, random: large makes the weights more equal."""
    alpha: NonNegativeFloat | None = None
    """lbtw: exponent of the loss ratio; gradnorm: strength of the pull towards slower tasks."""
    learning_rate: PositiveFloat | None = None
    """Step size of the method's own parameters (famo, gradnorm, uncertainty)."""
    weight_decay: NonNegativeFloat | None = None
    """famo: decay of its logits (gamma in the paper)."""
    layer: int | None = None
    """gradnorm: decoder layer whose gradients are compared; -1, the last, unless given."""
    gain: PositiveFloat | None = None
    """pace, selfpaced: how strongly the weights follow the method's signal (default 4 and 50)."""
    floor: Fraction | None = None
    """pace: least weight of a task, as a share of its configured weight."""
    val_share: Fraction | None = None
    """pace: share of the run's compute spent on validation rows; 0 looks at train losses of unseen samples only."""
    val_rows: PositiveInt | None = None
    """pace: validation rows of each task that are measured in turn."""

    @model_validator(mode="before")
    @classmethod
    def _published_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {PUBLISHED_NAMES.get(key, key) if isinstance(key, str) else key: inner for key, inner in value.items()}

    @field_validator("name")
    @classmethod
    def _known_balancer(cls, value: str) -> str:
        if value not in BALANCERS.names():
            raise ValueError(f"unknown balancer '{value}'.{did_you_mean(value, BALANCERS.names())}")
        return value

    @model_validator(mode="after")
    def _options_fit(self) -> "BalancerConfig":
        known = OPTIONS.get(self.name)
        given = sorted(name for name in self.model_fields_set - {"name"} if getattr(self, name) is not None)
        foreign = [] if known is None else [name for name in given if name not in known]
        if foreign:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise ValueError(f"'{self.name}' has no option {', '.join(foreign)}. {takes}")
        if self.window is not None and self.warmup_steps is not None and self.window < self.warmup_steps:
            raise ValueError(
                f"window ({self.window}) is shorter than warmup_steps ({self.warmup_steps}); make it at least as long"
            )
        least = 2 * (self.update_interval or 1)
        if self.name in SLOPE_METHODS and self.window is not None and self.window < least:
            raise ValueError(f"window ({self.window}) holds fewer than two updates; make it at least {least}")
        if self.val_batches is not None and "signal" in (known or ()) and self.signal != "validation":
            raise ValueError("val_batches is for signal: validation")
        return self

    @property
    def reads_validation(self) -> bool:
        """Whether the method measures validation rows, so that every task must have some."""
        return self.name in SLOPE_METHODS or self.signal == "validation"
