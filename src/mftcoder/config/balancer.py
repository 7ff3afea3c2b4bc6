"""The balancer section of the config: a method's name and the options that the method's own file declares.

`balancer: {name: coba, window: 40}` becomes a `CobaOptions`. A method names its options class in `options_type`, and the registry
finds the method. So this module imports a method only when a config names it.
"""

from typing import Any, ClassVar

from pydantic import Field, field_validator

from mftcoder.config.section import Section
from mftcoder.registry import BALANCERS, did_you_mean


class BalancerConfig(Section):
    """How task weights move during training: a method, and the options that this method has."""

    name: str = "uniform"
    """Method; uniform keeps the tasks' configured weights."""

    reads_gradients: ClassVar[bool] = False
    """Whether the method compares gradients of a whole layer, which not every backend has."""

    @property
    def first_validation_user(self) -> str | None:
        """The option that needs the validation before the first step, and why: `variant: released divides ...`."""
        return None

    @field_validator("name")
    @classmethod
    def _known_balancer(cls, value: str) -> str:
        if value not in BALANCERS.names():
            raise ValueError(f"unknown balancer '{value}'.{did_you_mean(value, BALANCERS.names())}")
        return value


def computed(default: str) -> Any:
    """An option whose default depends on the run: None in the config. The reference page shows `default`."""
    return Field(default=None, json_schema_extra={"computed": default})


def read_balancer(value: Any) -> Any:
    """The options of the method that a `balancer` section names. A text is a name; without a name the method is uniform."""
    section = {"name": value} if isinstance(value, str) else value
    if not isinstance(section, dict):
        return section
    name = section.get("name", "uniform")
    if name not in BALANCERS.names():
        return {"name": name}  # the field refuses it, and its options cannot be judged
    options = options_type(name)
    return options.model_validate({"name": name, **_without_nulls(section, options)})


def _without_nulls(section: dict[str, Any], options: type[BalancerConfig]) -> dict[str, Any]:
    """The section without options that are null. Null is the default, and older run folders hold null for every option there was."""
    return {
        key: value
        for key, value in section.items()
        if value is not None or not (key in options.model_fields or methods_with(key))
    }


def options_type(name: str) -> type[BalancerConfig]:
    """The class of the method's options: `BalancerConfig` itself if it has none."""
    found: type[BalancerConfig] = getattr(BALANCERS.load(name), "options_type", BalancerConfig)
    return found


def option_names(name: str) -> list[str]:
    """The options of a method, in the order of its file."""
    return [field for field in options_type(name).model_fields if field != "name"]


def methods_with(option: Any) -> list[str]:
    """The methods of this package that have this option."""
    return [name for name in sorted(BALANCERS.table) if option in option_names(name)]


def suggest_option(option: str, section: Any) -> str:
    """What to do about an unknown option of a `balancer` section; starts with a space."""
    name = section.get("name", "uniform") if isinstance(section, dict) else "uniform"
    known = option_names(name)
    takes = f"{name} takes {', '.join(known) or 'none'}."
    others = methods_with(option)
    if others:
        return f" It is an option of {', '.join(others)}; {takes}"
    return did_you_mean(option, known) if known else f" {takes[0].upper()}{takes[1:]}"
