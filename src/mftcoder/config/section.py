"""The base class of all sections of the config, and the types of numbers and paths that their fields take."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

LARGEST_COUNT = 2**31 - 1
LARGEST_ROW = 2**24
LARGEST, SMALLEST = 1e9, 1e-30
"""Limits of every number. Beyond them, values computed from it would overflow 64 bits or float32, or not fit into memory."""


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is a switch. Give a number")
    return value


Number = BeforeValidator(_no_switch)
"""Refuses true and false, which Python takes for 1 and 0."""


def _countable(value: int) -> int:
    if value > LARGEST_COUNT:
        raise ValueError(f"is too large: at most {LARGEST_COUNT:,}")
    return value


def _holdable(value: int) -> int:
    if value > LARGEST_ROW:
        raise ValueError(f"is too large: at most {LARGEST_ROW:,} positions")
    return value


def _in_range(value: float) -> float:
    if value > LARGEST or 0 < value < SMALLEST:
        raise ValueError(f"{value:g} is out of range: at most {LARGEST:g}, and {SMALLEST:g} or more where it is not 0")
    return value


def _whole_or_fraction(value: float) -> float:
    if value >= 1 and value != math.floor(value):
        raise ValueError(f"{value} is neither a whole number of steps nor a fraction below 1")
    return value


WholeOrFraction = AfterValidator(_whole_or_fraction)
"""A number of steps, or below 1 a fraction of all steps."""


def usable_path(value: str) -> str:
    """A path that the system accepts: parts of at most 255 bytes, at most 4,095 bytes in all, no null character, a known home folder."""
    if "\0" in value:
        raise ValueError("holds a null character, which no file name has")
    if max(map(len, value.encode().split(b"/"))) > 255 or len(os.fsencode(value)) > 4095:
        raise ValueError(f"'{value[:30]}...' is longer than a file name can be: 255 bytes a part, 4,095 in all")
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{value}': the home folder of this user is not known. Write the path in full") from error
    return value


Fraction = Annotated[float, Field(ge=0, lt=1), Number]
Positions = Annotated[int, Field(ge=8), AfterValidator(_holdable), Number]
PositiveInt = Annotated[int, Field(gt=0), AfterValidator(_countable), Number]
NonNegativeInt = Annotated[int, Field(ge=0), AfterValidator(_countable), Number]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_in_range), Number]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_in_range), Number]
PathText = Annotated[str, AfterValidator(usable_path)]
PathOrSwitch = Annotated[
    bool | str, AfterValidator(lambda value: usable_path(value) if isinstance(value, str) else value)
]


class Section(BaseModel):
    """A part of the config. It is frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    @property
    def options_without_effect(self) -> dict[str, str]:
        """Option -> why it has no effect beside the others."""
        return {}


def one_or_many(value: Any) -> Any:
    """A single text stands for a list of one."""
    return [value] if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(one_or_many)]
Paths = Annotated[tuple[PathText, ...], BeforeValidator(one_or_many)]
