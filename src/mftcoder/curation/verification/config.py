"""The options of the step `verify`."""

from collections.abc import Callable, Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mftcoder.config.section import PathText, Section, one_or_many
from mftcoder.execution.sandbox import LEVELS
from mftcoder.registry import did_you_mean

CHECKS = ("tests", "asserts", "doctests", "examples", "import", "compile")
"""What a record can claim, the strongest first."""
CLAIMS = frozenset({"tests", "asserts", "doctests", "examples"})
"""Checks that compare a result with an expected one; the others say only that the code is complete."""


def _one_of(what: str, known: Callable[[], Collection[str]]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in known():
            raise ValueError(f"unknown {what} '{name}'.{did_you_mean(name, known())}")
        return name

    return AfterValidator(check)


def _languages() -> Collection[str]:
    from mftcoder.execution.languages import LANGUAGES  # the sandbox, which only this option of a recipe needs

    return LANGUAGES


class VerifyConfig(Section):
    """Options of the step `verify`."""

    checks: Annotated[
        tuple[Annotated[str, _one_of("check", lambda: CHECKS)], ...], BeforeValidator(one_or_many), Field(min_length=1)
    ] = CHECKS
    """What is run: tests, asserts, doctests, examples, import, compile."""
    failed: Literal["drop", "keep"] = "drop"
    """What happens to a record that fails."""
    not_run: Literal["drop", "keep"] = "keep"
    """What happens to a record of which nothing can be run."""
    label: bool = False
    """Write the verdict into the field `verification` of each kept record."""
    tests: str = "auto"
    """The field with the tests of the answer; auto: the first of the usual names."""
    samples: str = ""
    """A field with further answers to the same question; they are used by `preferences` only."""
    preferences: PathText | None = None
    """File of pairs of a passing and a failing answer to the same question."""
    language: Annotated[str, _one_of("language", _languages)] | None = None
    """The language of answers without a fence; default: Python, if an answer begins as Python does."""
    timeout: float = Field(default=5.0, gt=0, le=3600)
    """Seconds of CPU time that the code of one record may take."""
    memory_mb: int = Field(default=1024, ge=64, le=1 << 20)
    """Megabytes that it may take."""
    sandbox: Annotated[str, _one_of("sandbox level", lambda: ("auto", *LEVELS))] = "auto"
    """namespaces, process, or auto: the strongest level that works here."""

    @model_validator(mode="after")
    def _samples_are_used(self) -> "VerifyConfig":
        if self.samples and not self.preferences:
            raise ValueError("`samples` is used by `preferences` only; give both")
        return self
