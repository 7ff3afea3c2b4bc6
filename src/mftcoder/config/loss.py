"""The section `loss`: the objective of a step, and which kinds of tasks it can have."""

from collections.abc import Mapping
from typing import Literal

from mftcoder.config.kinds import GrpoKind, PreferenceKind, TaskKind
from mftcoder.config.section import NonNegativeFloat, Section


class LossConfig(Section):
    """The objective of a step."""

    normalization: Literal["token", "sample", "task_token", "task_sample", "corpus"] = "task_token"
    """Weighted mean over tokens (token), over samples (sample), or over tasks of their token means (task_token) or sample means
    (task_sample): MFTCoder's case1 to case4. corpus gives each token of a task the same coefficient in the whole epoch, so rare tasks have
    their full weight."""
    absent_task: Literal["renormalize", "keep"] = "renormalize"
    """With task_token and task_sample: the weight of a task that is absent from a step goes to the other tasks (renormalize), or is unused (keep)."""
    focal: Literal["none", "sample", "task"] = "none"
    """Multiply the loss of each sample, or of each task, by (1 - its mean token probability)^focal_gamma, so that hard ones count more."""
    focal_gamma: NonNegativeFloat = 2.0
    """Exponent of the focal weight; 0 turns it off."""
    focal_detach: bool = True
    """Treat the focal weight as a constant. false lets gradients flow through it."""
    router_aux_loss_coef: NonNegativeFloat | None = None
    """Factor of the routers' load-balancing loss in a mixture of experts. null: the factor of the model's own config; 0: no such loss."""


def check_loss(loss: LossConfig, kinds: Mapping[str, TaskKind]) -> None:
    """ValueError for an objective that has no meaning for a task of these."""
    preferences = [name for name, kind in kinds.items() if isinstance(kind, PreferenceKind | GrpoKind)]
    if not preferences:
        return
    what = "pairs" if isinstance(kinds[preferences[0]], PreferenceKind) else "sampled answers"
    which = f"for task '{preferences[0]}', whose samples are {what}"
    if loss.normalization == "token":
        raise ValueError(
            f"loss.normalization: token has no meaning {which}. Set task_token, sample, task_sample or corpus"
        )
    if loss.focal != "none":
        raise ValueError(f"loss.focal: {loss.focal} has no meaning {which}. Set none")
