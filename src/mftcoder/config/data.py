"""The sections `tasks` and `data`: which tasks there are, and how their records become rows."""

from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from mftcoder.config.kinds import SFT, GrpoKind, Kind, PreferenceKind
from mftcoder.config.section import (
    Fraction,
    NonNegativeFloat,
    Paths,
    PathText,
    Positions,
    PositiveFloat,
    PositiveInt,
    Section,
    usable_path,
)
from mftcoder.errors import MftError
from mftcoder.jsonl import read_json
from mftcoder.registry import FORMATS, did_you_mean


class TaskConfig(Section):
    """One task: where its examples are and how much it counts."""

    name: str
    """Name of the task in tables and metrics."""
    kind: Kind = SFT
    """sft: conversations. pretrain: documents. grpo: groups of sampled answers with rewards. The others: pairs of a chosen and a rejected answer, for kto labelled answers. The tables below list each kind's options: `kind: {name: pretrain, fim_rate: 0.5}`."""
    path: PathText | None = None
    """A folder of .jsonl or .jsonl.gz files, one such file, or the id of a dataset on the Hub. kind.suffixes adds plain files."""
    files: Paths = ()
    """A list of training files, instead of `path`."""
    validation: Paths = ()
    """Validation files or folders. Without them a part of the training data is held out (data.val_size)."""
    format: str = "auto"
    """Dialect of the records. auto recognizes it record by record. The preference kinds have fields of their own, and take auto only."""
    weight: NonNegativeFloat = 1.0
    """Weight of the task in the objective."""
    sampling_weight: NonNegativeFloat | None = None
    """With data.sampling: weights, the fraction of the rows that comes from this task, up to a common factor."""
    max_samples: PositiveInt | None = None
    """Use at most this many examples, chosen by the hash of their content."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value != "auto" and value not in FORMATS.names():
            raise ValueError(f"unknown format '{value}'.{did_you_mean(value, ['auto', *FORMATS.names()])}")
        return value

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if not value or set(value) & set("/\\\0\n") or value.startswith("."):
            raise ValueError(f"'{value}' cannot name a task: no slash, no line break, no leading dot")
        return value

    @model_validator(mode="after")
    def _has_data(self) -> "TaskConfig":
        if bool(self.path) == bool(self.files):
            raise ValueError("give either `path` (a folder, a file or a Hub dataset) or `files`")
        return self

    @model_validator(mode="after")
    def _format_is_read(self) -> "TaskConfig":
        if self.format != "auto" and isinstance(self.kind, PreferenceKind | GrpoKind):
            raise ValueError(
                f"format: {self.format}: records of kind {self.kind.name} are read by their fields. Leave it out"
            )
        return self


class RoleMarkers(Section):
    """A template of your own: the text before each role's turns."""

    system: str = ""
    """Text before the system message."""
    user: str
    """Text before each user message."""
    assistant: str
    """Text before each assistant message."""
    after_content: str = ""
    """Text after each content and after the EOS token. After an answer it is trained. The published trainer has a line break here."""


class DataConfig(Section):
    """From records to rows: template, lengths, packing, validation, sampling."""

    chat_template: str = "auto"
    """How a conversation becomes text. auto is the tokenizer's own template; docs/data.md shows the others."""
    role_markers: RoleMarkers | None = None
    """A template of your own: marker, content, marker, content, EOS token. Replaces chat_template."""
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Tokens of a conversation (kind: sft) that are trained: those of every assistant turn, of the last assistant turn, or of the whole text."""
    max_length: Positions = 2048
    """Positions of a row, and the largest length of a sample; of the two texts of a pair together."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit puts several samples into a row of max_length, isolated from each other. none gives each sample its own row."""
    padding: Literal["dynamic", "max_length"] = "dynamic"
    """With packing: none, rows are padded to the longest row of their batch (rows are grouped by length), or to max_length."""
    over_length: Literal["truncate", "drop", "split"] = "truncate"
    """What happens to a sample longer than max_length. Such samples are counted per task. Documents (kind: pretrain) lose nothing: they are
    always split. Pairs (the preference kinds) are never split: split drops them."""
    val_size: Fraction = 0.02
    """Fraction of each task that is held out for validation, chosen by the hash of the content; 0 for none."""
    max_val_samples: PositiveInt | None = None
    """At most this many validation samples for each task, chosen by the hash of their content."""
    on_error: Literal["fail", "skip"] = "fail"
    """What happens if records cannot be used. fail: the run ends with a list of them. skip: they are left out, counted and listed."""
    max_errors: PositiveInt = 20
    """How many data errors are printed."""
    sampling: Literal["proportional", "uniform", "temperature", "weights"] = "proportional"
    """How often rows of a task are drawn: by its size (each sample once an epoch), equally, by size^(1/T), or by sampling_weight."""
    sampling_temperature: PositiveFloat = 2.0
    """T of data.sampling: temperature. 1 is proportional, a large T is nearly uniform."""
    cache_dir: PathText | None = None
    """Folder of the tokenized data; null: $MFTCODER_CACHE or ~/.cache/mftcoder."""
    num_proc: PositiveInt | None = None
    """Processes that tokenize; null: one for each core."""

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_may_be_a_switch(cls, value: Any) -> Any:
        return {True: "best_fit", False: "none"}.get(value, value) if isinstance(value, bool) else value


def task_list(value: Any) -> Any:
    """`{tests: data/tests}` and `{tests: {path: data/tests, weight: 2}}` as lists of named tasks; a text is a folder of `mft data`."""
    if isinstance(value, str):
        return _curated_tasks(value)
    if not isinstance(value, dict):
        return value
    return [
        {"name": name, **({"path": task} if isinstance(task, str) else task if isinstance(task, dict) else {})}
        for name, task in value.items()
    ]


def _curated_tasks(given: str) -> list[dict[str, Any]]:
    """The tasks of a folder that `mft data` made, with their validation files, as its manifest names them."""
    try:
        folder = Path(usable_path(given)).expanduser()
        manifest = read_json(folder / "manifest.json")
        tasks, files = dict(manifest["tasks"]), set(manifest["files"])
    except (MftError, KeyError, TypeError) as error:
        raise ValueError(
            f"{given}: is not a folder that `mft data curate` made. Write `tasks: {{NAME: {given}}}` for one task of its files"
        ) from error
    return [
        {
            "name": name,
            "path": str(folder / name),
            "validation": [str(folder / held_out)] if (held_out := f"validation/{name}.jsonl") in files else [],
            "format": facts.get("format", "auto"),
        }
        for name, facts in tasks.items()
        if f"{name}/train.jsonl" in files
    ]
