"""The kinds of a task: what its records are, and the loss that trains them. Each kind has its own options.

`kind: pretrain` in a task is short for `kind: {name: pretrain}`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from mftcoder.config.section import Section, Strings
from mftcoder.registry import did_you_mean

Share = Annotated[float, Field(ge=0, le=1)]


class TaskKind(Section):
    """What the records of a task are, and the loss that trains them."""

    name: str = "sft"
    """One of KINDS."""


class SftKind(TaskKind):
    """Conversations, trained on the answers with cross entropy (supervised fine-tuning)."""


class PretrainKind(TaskKind):
    """Documents, trained on every token with cross entropy (continued pretraining)."""

    documents: Literal["packed", "isolated"] = "packed"
    """packed: the documents run on, each with an EOS token, and are cut into rows of data.max_length without loss; a row's documents see
    each other. isolated: each document is a sample of its own, split if it is longer than a row."""
    suffixes: Strings = ()
    """Endings of plain files, such as .py, that are read as one document each, in folders and in all folders below. Without them a task has
    .jsonl files only."""
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
            if not suffix or "/" in suffix:
                raise ValueError(f"'{suffix}' is not the end of a file name. Write endings such as .py")
            if suffix.endswith((".jsonl", ".jsonl.gz")):
                raise ValueError(f"'{suffix}': such files are always read, as records. Leave it out")
        return value


KINDS: dict[str, type[TaskKind]] = {"sft": SftKind, "pretrain": PretrainKind}
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
