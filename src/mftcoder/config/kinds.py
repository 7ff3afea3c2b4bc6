"""The kinds of a task: what its records are, and the loss that trains them. Each kind has its own options.

`kind: pretrain` in a task is short for `kind: {name: pretrain}`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from mftcoder.config.section import NonNegativeFloat, Number, PositiveFloat, PositiveInt, Section, Strings
from mftcoder.registry import did_you_mean

Share = Annotated[float, Field(ge=0, le=1), Number]
Smoothing = Annotated[float, Field(ge=0, lt=0.5), Number]
TOKENS_ENDING = ".idx"
"""The ending of Megatron's token files, which a task of kind pretrain may have."""


class TaskKind(Section):
    """What the records of a task are, and the loss that trains them."""

    name: str = "sft"
    """One of KINDS."""

    needs_reference: ClassVar[bool] = False
    """Whether the loss compares the model with the untrained one."""


class SftKind(TaskKind):
    """Conversations, trained on the answers with cross entropy (supervised fine-tuning)."""


class PretrainKind(TaskKind):
    """Documents, trained on every token with cross entropy (continued pretraining)."""

    documents: Literal["packed", "isolated"] = "packed"
    """packed: the documents run on, each with an EOS token, and are cut into rows of data.max_length without loss; a row's documents see
    each other. isolated: each document is a sample of its own, split if it is longer than a row."""
    suffixes: Strings = ()
    """Endings of plain files, such as .py, that are read as one document each, in folders and in all folders below. Without them a task has
    .jsonl files and Megatron token files (.idx) only."""
    fim_rate: Share = 0.0
    """Fraction of the documents that are rearranged for fill-in-the-middle: cut at two random characters into prefix, middle and suffix. Only
    documents that fit into a row are. Needs a tokenizer with FIM tokens."""
    fim_spm_rate: Share = 0.5
    """Fraction of the rearranged documents in the order suffix, prefix, middle (SPM). The others have prefix, suffix, middle (PSM)."""

    @property
    def options_without_effect(self) -> dict[str, str]:
        """`fim_spm_rate` without `fim_rate`."""
        return {} if self.fim_rate else {"fim_spm_rate": "kind.fim_rate is 0"}

    @field_validator("suffixes")
    @classmethod
    def _name_no_records(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for suffix in value:
            if not suffix or suffix != suffix.strip() or set(suffix) & set("/*?[],"):
                raise ValueError(f"'{suffix}' is not the end of a file name. Write endings such as .py")
            if suffix.endswith((".jsonl", ".jsonl.gz")):
                raise ValueError(f"'{suffix}': such files are always read, as records. Leave it out")
            if suffix.endswith(".idx"):
                raise ValueError(f"'{suffix}': such files are always read, as Megatron token files. Leave it out")
        return value


class PreferenceKind(TaskKind):
    """Base of the kinds whose records are pairs of a chosen and a rejected answer, or labelled answers. A pair is one sample."""


class DpoKind(PreferenceKind):
    """Pairs: the chosen answer must gain more likelihood over the reference, the untrained model, than the rejected one (arXiv
    2305.18290)."""

    needs_reference: ClassVar[bool] = True

    beta: PositiveFloat = 0.1
    """How far the model may move from the reference: a small beta lets it move far."""
    label_smoothing: Smoothing = 0.0
    """Assumed fraction of pairs with exchanged answers (cDPO)."""
    rpo_alpha: NonNegativeFloat = 0.0
    """Weight of the chosen answers' mean token loss, added to the loss (RPO, arXiv 2404.19733)."""


class IpoKind(PreferenceKind):
    """Pairs: the gain of the chosen answer over the rejected one, each a mean over tokens, must come close to 1 / (2 beta) (arXiv
    2310.12036)."""

    needs_reference: ClassVar[bool] = True

    beta: PositiveFloat = 0.1
    """Regularization; the paper's tau."""


class OrpoKind(PreferenceKind):
    """Pairs, without a reference: the chosen answers' mean token loss, plus beta times the log odds ratio (arXiv 2403.07691)."""

    beta: PositiveFloat = 0.1
    """Weight of the odds ratio; the paper's lambda."""


class SimpoKind(PreferenceKind):
    """Pairs, without a reference: the mean log-probability of the chosen answer must exceed that of the rejected one by a margin (arXiv
    2405.14734)."""

    beta: PositiveFloat = 2.0
    """Scale of the mean log-probabilities."""
    gamma: NonNegativeFloat = 1.0
    """Target margin between the two scaled means."""
    label_smoothing: Smoothing = 0.0
    """Assumed fraction of pairs with exchanged answers."""


class KtoKind(PreferenceKind):
    """Answers with a label, desirable or not, each compared with the reference and with the step's mean divergence from it (arXiv
    2402.01306)."""

    needs_reference: ClassVar[bool] = True

    beta: PositiveFloat = 0.1
    """How far the model may move from the reference."""
    desirable_weight: NonNegativeFloat = 1.0
    """Weight of the desirable answers. 0: they are not trained, and still count in z and in the mean over answers."""
    undesirable_weight: NonNegativeFloat = 1.0
    """Weight of the undesirable answers, likewise."""

    @model_validator(mode="after")
    def _weigh_something(self) -> Self:
        if not self.desirable_weight and not self.undesirable_weight:
            raise ValueError(
                "desirable_weight and undesirable_weight are both 0, so nothing would be trained. Raise one of them"
            )
        return self


class GrpoKind(TaskKind):
    """Groups of sampled answers with rewards: answers above their group's mean reward gain likelihood, those below lose (GRPO, arXiv
    2402.03300). `mft improve --method grpo` samples them, and takes the rewards from executed tests."""

    scale_rewards: bool = True
    """Divide the advantage, the reward minus the group's mean, by the group's standard deviation. false: Dr. GRPO (arXiv 2503.20783)."""
    length: Literal["answer", "tokens", "constant"] = "answer"
    """What an answer's token losses are divided by: its own tokens (GRPO), the tokens of a mean answer of the step, so that every token counts
    the same (DAPO, arXiv 2503.14476), or max_tokens (Dr. GRPO)."""
    max_tokens: PositiveInt = 512
    """The divisor of length: constant."""
    epsilon: PositiveFloat | None = 0.2
    """How far the probability of a token may fall below that of the model that sampled it, as a fraction, before the token is clipped. null:
    neither ratio nor clip; exact for one step on freshly sampled answers, and one forward pass cheaper."""
    epsilon_high: PositiveFloat | None = None
    """How far it may rise; null: as far as epsilon. DAPO has 0.28."""
    beta: NonNegativeFloat = 0.0
    """Weight of the divergence from the untrained model (KL). Above 0 it needs LoRA, whose weights are turned off for it."""

    @property
    def options_without_effect(self) -> dict[str, str]:
        """Options that another one turns off."""
        found = {} if self.length == "constant" else {"max_tokens": f"kind.length is {self.length}"}
        return found if self.epsilon is not None else {**found, "epsilon_high": "kind.epsilon is null"}

    @model_validator(mode="after")
    def _keep_probabilities_positive(self) -> Self:
        if self.epsilon is not None and self.epsilon >= 1:
            raise ValueError(f"epsilon: {self.epsilon:g}: a probability cannot fall by that. Give a fraction below 1")
        return self


KINDS: dict[str, type[TaskKind]] = {
    "sft": SftKind,
    "pretrain": PretrainKind,
    "dpo": DpoKind,
    "ipo": IpoKind,
    "orpo": OrpoKind,
    "simpo": SimpoKind,
    "kto": KtoKind,
    "grpo": GrpoKind,
}
SFT = SftKind()


def read_kind(value: Any) -> Any:
    """The options of the kind that `kind` names. A text is a name; without a name the kind is sft."""
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, dict):
        return section
    name = section.get("name", "sft")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"unknown kind {name!r}.{did_you_mean(str(name), KINDS)}")
    return KINDS[name].model_validate({"name": name, **section})


Kind = Annotated[SerializeAsAny[TaskKind], BeforeValidator(read_kind)]
