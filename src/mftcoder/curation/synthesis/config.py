"""What a synthesis is asked to do: a method with its options, the model behind an endpoint, the budget, the output.

It is written as YAML or JSON, or made from the options of the command. All its problems are reported together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from mftcoder.config.load import read_config_file
from mftcoder.config.problems import validated
from mftcoder.config.section import NonNegativeInt, Paths, PathText, PositiveInt, Section
from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.filters.config import FilterConfig
from mftcoder.curation.teacher.budget import BudgetConfig, check_budget
from mftcoder.curation.teacher.endpoint import EndpointConfig


class ExercisesConfig(Section):
    """Exercises on topics, in the six steps of CodeExercise-Python-27k."""

    topics: PathText
    """Text file with one topic a line; `#` begins a comment."""
    language: str = "Python"
    """Programming language of the exercises."""
    variants: PositiveInt = 1
    """Sharpened requests per topic."""
    exercises: PositiveInt = 10
    """Exercises that are asked for in one request."""


class EvolConfig(Section):
    """Harder questions from those of your records, by Evol-Instruct."""

    records: Paths
    """Files or folders of JSONL, in any dialect. Their questions are the start; their answers are not used."""
    rounds: PositiveInt = 3
    """Times that a question is made harder. Each version that is not eliminated is a record."""
    judge: bool = True
    """Ask whether a version asks for more than the one before it, and eliminate it if not."""
    most_alike: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of word pairs in common from which on a version counts as unchanged."""
    prompt_words: tuple[str, ...] = ("harder question", "harder version", "rewritten question")
    """Phrases of the prompts. A version that holds one talks about the prompt, and is eliminated."""


class OssConfig(Section):
    """Problems inspired by pieces of your code, by OSS-Instruct."""

    folder: PathText
    """Folder of source code. Its pieces are sent to the endpoint."""
    snippets: PositiveInt = 1000
    """Pieces that are taken, chosen by the seed."""
    lines: PositiveInt = 15
    """Most lines of a piece."""


class TestsConfig(Section):
    """Tests for Python answers, kept if the answer passes them and answers with a bug fail."""

    __test__ = False  # pytest would take a class named Test... for a test

    records: Paths
    """Files or folders of JSONL, in any dialect: questions with Python code as answers."""
    count: PositiveInt = 5
    """Tests that are asked for."""
    answers: NonNegativeInt = 0
    """Further answers that the model writes. A test is kept if more than half of all answers, the record's included, pass it."""
    mutants: PositiveInt = 5
    """Variants of the answer with one bug that are tried; the tests must fail for at least one."""


class RepairConfig(Section):
    """Answers that fail their tests, repaired by the model that sees the error."""

    records: Paths
    """Files or folders of JSONL whose records have a question and tests (a field such as `tests`)."""
    answer: bool = False
    """Ask the model for the first answer too, instead of taking the record's."""
    rounds: PositiveInt = 3
    """Attempts to repair an answer."""


METHODS = ("exercises", "evol", "oss", "tests", "repair")


class SynthesisConfig(Section):
    """All of a synthesis. Exactly one of the methods has a section."""

    exercises: ExercisesConfig | None = None
    """Exercises on topics."""
    evol: EvolConfig | None = None
    """Harder questions."""
    oss: OssConfig | None = None
    """Problems inspired by code."""
    tests: TestsConfig | None = None
    """Tests for answers."""
    repair: RepairConfig | None = None
    """Repaired answers."""
    endpoint: EndpointConfig
    """The model that writes."""
    sharpener: EndpointConfig | None = None
    """The model that sharpens the requests of `exercises`; default: the one that writes."""
    budget: BudgetConfig = BudgetConfig()
    """What all runs into this output may use together."""
    filter: FilterConfig | None = FilterConfig(
        rules={
            "code_blocks": (1, None),
            "open_fences": (None, 0),
            "broken_python": (None, 0),
            "empty_functions": (None, 0),
            "placeholders": (None, 0),
            "refusals": (None, 0),
        }
    )
    """Rules that a record must keep, as in a recipe of `mft data curate`; null for none."""
    dedup: DedupConfig | None = DedupConfig(on="question", keep="first")
    """How records that are alike are found; null keeps them."""
    prompts: PathText | None = None
    """Folder with prompts of your own."""
    limit: PositiveInt | None = None
    """Take only the first topics, records or pieces."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Chooses pieces and ways, and gives each request its seed."""
    output_dir: PathText
    """Folder of the result."""

    @model_validator(mode="after")
    def _has_one_method(self) -> "SynthesisConfig":
        chosen = [name for name in METHODS if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise ValueError(f"give the section of exactly one method: {', '.join(METHODS)}")
        if self.sharpener and self.method != "exercises":
            raise ValueError("sharpener: is used by the method exercises only")
        if (
            self.sharpener
            and self.sharpener.model == self.endpoint.model
            and _prices(self.sharpener) != _prices(self.endpoint)
        ):
            raise ValueError("sharpener: has the endpoint's model, but other prices; costs are counted by model")
        return self

    @property
    def method(self) -> str:
        """exercises, evol, ..."""
        return next(name for name in METHODS if getattr(self, name) is not None)

    @property
    def endpoints(self) -> tuple[EndpointConfig, ...]:
        """The models that are asked."""
        return (self.endpoint, self.sharpener) if self.sharpener else (self.endpoint,)


def _prices(endpoint: EndpointConfig) -> tuple[float | None, float | None]:
    return endpoint.price_in, endpoint.price_out


def load_synthesis(path: Path, overrides: Sequence[str] = ()) -> SynthesisConfig:
    """The synthesis in a file, with overrides such as `output_dir=data/out`; ConfigError lists all problems."""
    return parse_synthesis(read_config_file(path, overrides), origin=str(path))


def parse_synthesis(raw: dict[str, Any], *, origin: str) -> SynthesisConfig:
    """The validated synthesis; ConfigError with one line `origin: field: what` a problem."""
    config = validated(SynthesisConfig, raw, origin=origin)
    check_budget(config.budget, config.endpoints)
    return config
