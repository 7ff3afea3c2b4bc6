"""A recipe: which records are curated, by which steps, and where the result goes.

It is written as YAML or JSON. All its problems are reported together. The files that it names are not looked at here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mftcoder.config.data import TaskConfig, task_list
from mftcoder.config.problems import validated
from mftcoder.config.section import PathText, PositiveInt, Section
from mftcoder.curation.decontamination.exams import DecontaminateConfig
from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.filters.config import DifficultyConfig, FilterConfig
from mftcoder.curation.verification.config import VerifyConfig

KINDS = ("filter", "dedup", "decontaminate", "verify", "difficulty")
_OF_A_RUN = ("kind", "weight", "sampling_weight", "max_samples")


class Step(Section):
    """One step. A recipe writes it as a mapping from its kind to its options: `filter: evol_66k`."""

    filter: FilterConfig | None = None
    """Keep records that are inside the bounds of each rule."""
    dedup: DedupConfig | None = None
    """Keep one of the records that are alike."""
    decontaminate: DecontaminateConfig | None = None
    """Drop records that hold a problem of an exam."""
    verify: VerifyConfig | None = None
    """Run what can be run of a record, and drop what fails."""
    difficulty: DifficultyConfig | None = None
    """Let a model say how much the question helps with the answer."""

    @model_validator(mode="before")
    @classmethod
    def _a_bare_kind_has_default_options(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: None}
        if isinstance(value, dict):
            return {kind: {} if options is None else options for kind, options in value.items()}
        return value

    @model_validator(mode="after")
    def _has_one_kind(self) -> "Step":
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"a step is a mapping with one key of: {', '.join(KINDS)}")
        return self

    @property
    def kind(self) -> str:
        """filter, dedup, ..."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


class Recipe(Section):
    """All of a curation."""

    tasks: Annotated[tuple[TaskConfig, ...], BeforeValidator(task_list), Field(min_length=1)]
    """The tasks, written as in the config of a run: a name, then `path` or `files`, `validation`, `format`."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    """What happens to the records, in this order."""
    output_dir: PathText
    """Folder of the result: a folder a task, validation/, dropped.jsonl, manifest.json, README.md."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Chooses the samples that the data card shows."""
    num_proc: PositiveInt | None = None
    """Processes that work on records; default all cores. The result does not depend on it."""

    @field_validator("tasks")
    @classmethod
    def _tasks_fit(cls, tasks: tuple[TaskConfig, ...]) -> tuple[TaskConfig, ...]:
        names = [task.name for task in tasks]
        problems = [
            f"two tasks are named {name}; a recipe can name them: `tasks: {{a: PATH, b: PATH}}`"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if "validation" in names:
            problems.append("a task cannot be named validation: the folder of the held-out records has this name")
        for task in tasks:
            set_here = [name for name in _OF_A_RUN if name in task.model_fields_set]
            problems += [
                f"{task.name}.{name}: does nothing in a recipe. It belongs to the config of a run" for name in set_here
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return tasks

    @property
    def step_names(self) -> tuple[str, ...]:
        """`1-filter`, `2-dedup`, ...: as they stand in dropped.jsonl."""
        return tuple(f"{number}-{step.kind}" for number, step in enumerate(self.steps, start=1))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with overrides such as `output_dir=data/out`; ConfigError lists all problems."""
    from mftcoder.config.load import read_config_file  # not needed by a command of one step, and slow

    return parse_recipe(read_config_file(path, overrides), origin=str(path))


def parse_recipe(raw: dict[str, Any], *, origin: str) -> Recipe:
    """The validated recipe; ConfigError with one line `origin: field: what` a problem."""
    return validated(Recipe, raw, origin=origin)
