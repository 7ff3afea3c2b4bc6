"""What tasks there are and how their records become rows: the sections `tasks` and `data` of a config."""

from typing import Any, Literal

from pydantic import field_validator, model_validator

from mftcoder.config.section import (
    Fraction,
    NonNegativeFloat,
    Paths,
    PathText,
    Positions,
    PositiveFloat,
    PositiveInt,
    Section,
)
from mftcoder.registry import FORMATS, did_you_mean


class TaskConfig(Section):
    """One task: where its examples lie and how much it counts."""

    name: str
    """Name of the task, as it stands in tables and metrics."""
    path: PathText | None = None
    """A folder of .jsonl or .jsonl.gz files, one such file, or the id of a dataset on the Hub."""
    files: Paths = ()
    """The training files one by one, instead of `path`."""
    validation: Paths = ()
    """Validation files or folders. Without them a share of the training data is held out (data.val_size)."""
    format: str = "auto"
    """Dialect of the records: auto looks at each record."""
    weight: NonNegativeFloat = 1.0
    """Weight of the task in the objective."""
    sampling_weight: NonNegativeFloat | None = None
    """Share of the rows that come from this task, with data.sampling: weights."""
    max_samples: PositiveInt | None = None
    """Use only this many examples, chosen by the hash of their content."""

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


class RoleMarkers(Section):
    """The texts that open each role's turn in a template of one's own."""

    system: str = ""
    """Stands before the system message."""
    user: str
    """Stands before each user message."""
    assistant: str
    """Stands before each assistant message."""
    after_content: str = ""
    """Stands behind each content, and behind the EOS token; trained behind an answer. The published trainer has a line break."""


class DataConfig(Section):
    """From records to rows: template, lengths, packing, validation, sampling."""

    chat_template: str = "auto"
    """How a conversation becomes text. auto is the tokenizer's own template; docs/data.md shows the others."""
    role_markers: RoleMarkers | None = None
    """A template of one's own: marker, content, marker, content, EOS token. Replaces chat_template."""
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which tokens are trained: every assistant turn, the last one only, or all of the text."""
    max_length: Positions = 2048
    """Positions of a row, and the most a sample may have."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """best_fit puts several samples into a row of max_length, isolated from each other; none gives each a row."""
    padding: Literal["dynamic", "max_length"] = "dynamic"
    """With packing: none, rows are filled up to the longest of their batch (grouped by length) or to max_length."""
    over_length: Literal["truncate", "drop", "split"] = "truncate"
    """What happens to a sample longer than max_length; counted per task."""
    val_size: Fraction = 0.02
    """Share of each task held out for validation, by a hash of the content; 0 for none."""
    max_val_samples: PositiveInt | None = None
    """At most this many validation samples a task, chosen by the hash of their content."""
    on_error: Literal["fail", "skip"] = "fail"
    """A record that cannot be used ends the run with a list of them all, or is left out, counted and listed."""
    max_errors: PositiveInt = 20
    """How many data errors are printed."""
    sampling: Literal["proportional", "uniform", "temperature", "weights"] = "proportional"
    """How often a task's rows come up: by its size (each sample once an epoch), equally, by size^(1/T), or as given."""
    sampling_temperature: PositiveFloat = 2.0
    """T of data.sampling: temperature; 1 is proportional, large is uniform."""
    cache_dir: PathText | None = None
    """Where tokenised data is kept; default $MFTCODER_CACHE or ~/.cache/mftcoder."""
    num_proc: PositiveInt | None = None
    """Processes that tokenise; default all cores."""

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_may_be_a_switch(cls, value: Any) -> Any:
        return {True: "best_fit", False: "none"}.get(value, value) if isinstance(value, bool) else value
