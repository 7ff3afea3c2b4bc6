"""Turn pydantic's errors into lines a person can act on: `file: field.path: what is wrong`, with a suggestion for an unknown key."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mftcoder.errors import ConfigError
from mftcoder.registry import did_you_mean

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


def validated(
    model: type[Model], raw: dict[str, Any], *, origin: str, suggest: Callable[[Location], str] | None = None
) -> Model:
    """The validated model. ConfigError has one line `origin: field.path: what` for each problem."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        known = suggest or (lambda location: _suggest(model, location))
        raise ConfigError.collect(problem_lines(error, raw, origin=origin, suggest=known)) from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error


def _suggest(model: type[BaseModel], location: Location) -> str:
    """What an unknown key may mean: a field of the section that it stands in."""
    for part in location[:-1]:
        if part in model.model_fields:
            model = _section_in(model.model_fields[str(part)].annotation) or model
    return did_you_mean(str(location[-1]), model.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `tuple[Step, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def problem_lines(
    error: ValidationError, raw: dict[str, Any], *, origin: str, suggest: Callable[[Location], str]
) -> list[str]:
    """One line for each problem, in the order found, without repeats. `suggest` says what an unknown key may mean."""
    details = error.errors(include_url=False)
    # pydantic counts the valid items of a list only, and so calls one whose items are wrong too short
    locations = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}
    details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in locations]
    return list(dict.fromkeys(one_line(_line(detail, raw, origin, suggest)) for detail in details))


def _line(detail: Any, raw: dict[str, Any], origin: str, suggest: Callable[[Location], str]) -> str:
    field = _field_path(detail["loc"], raw)
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {field}: unknown key.{suggest(detail['loc'])}"
    if detail["type"] == "missing":
        return f"{origin}: {field}: is required"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{origin}: {field}: {message}" if detail["loc"] else f"{origin}: {message}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        message = "should be a section of fields"
    return f"{origin}: {field}: {message}, not {shown(detail['input'])}"


def _field_path(location: Location, raw: dict[str, Any]) -> str:
    """`tasks.tests.weight` rather than `tasks.1.weight`, if the second task has a name."""
    parts = [str(part) for part in location]
    if len(location) > 1 and location[0] == "tasks" and isinstance(location[1], int):
        parts[1] = _task_name(raw.get("tasks"), location[1])
    return ".".join(parts) or "config"


def _task_name(tasks: Any, index: int) -> str:
    if isinstance(tasks, dict):
        return str(list(tasks)[index])
    task = tasks[index] if isinstance(tasks, list) else None
    return str(task.get("name") or index) if isinstance(task, dict) else str(index)


def one_line(text: str, limit: int = 1000) -> str:
    """The text without line breaks and control characters, cut to `limit` characters. A user's value can contain such characters."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    line = " ".join(printable.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def shown(value: Any) -> str:
    """A value as an error line shows it: one line, at most 60 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested past the recursion limit, or an integer of thousands of digits
        text = type(value).__name__
    return one_line(text, 60)


def kind_of(value: Any) -> str:
    """The kind of a value, in words for an error line."""
    names = {dict: "a mapping", list: "a list", str: "a text", int: "a number", float: "a number", bool: "a switch"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)
