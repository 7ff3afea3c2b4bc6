"""Which rules a filter step uses, and with which bounds: read from a recipe, and applied to a record."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from mftcoder.config.section import Section
from mftcoder.curation.example import Drop, Example
from mftcoder.curation.filters.rules import PRESETS, RULES
from mftcoder.registry import did_you_mean

Bounds = tuple[float | None, float | None]


class FilterConfig(Section):
    """A preset, a list of rules, or a mapping from rules to bounds (true: the default ones, false: without this rule)."""

    rules: dict[str, Bounds]
    """Rule -> lowest and highest value that is kept."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if isinstance(value, list | tuple):
            value = {str(name): True for name in value}
        if not isinstance(value, dict) or set(value) == {"rules"}:
            return value
        return {"rules": _bounds_of_all(value)}


def _bounds_of_all(given: Mapping[str, Any]) -> dict[str, Bounds]:
    """The bounds of each rule. ValueError with every problem."""
    problems = []
    chosen: dict[str, Bounds] = {}
    preset = given.get("preset")
    if preset is not None and preset not in PRESETS:
        problems.append(f"unknown preset '{preset}'.{did_you_mean(str(preset), PRESETS)}")
    for name in PRESETS.get(preset, ()) if isinstance(preset, str) else ():
        chosen[name] = (RULES[name].low, RULES[name].high)
    for name, value in given.items():
        if name == "preset":
            continue
        if name not in RULES:
            problems.append(f"unknown rule '{name}'.{did_you_mean(str(name), [*RULES, 'preset'])}")
        elif value is False:
            chosen.pop(name, None)
        elif value is True or value is None:
            chosen[name] = (RULES[name].low, RULES[name].high)
        elif (bounds := _bounds(value)) is None:
            problems.append(f"rule '{name}': give [lowest, highest] with null for no bound, or true, or false")
        else:
            chosen[name] = bounds
    if not chosen and not problems:
        problems.append("no rule is left in it")
    if problems:
        raise ValueError("; ".join(problems))
    return chosen


def _bounds(value: Any) -> Bounds | None:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = value
    if not all(bound is None or (isinstance(bound, int | float) and not isinstance(bound, bool)) for bound in value):
        return None
    if (low is None and high is None) or (low is not None and high is not None and not low <= high):
        return None
    return low, high


class Filter:
    """The step: keeps a record that is inside the bounds of every rule."""

    def __init__(self, config: FilterConfig):
        self.rules = [(name, RULES[name].measure, low, high) for name, (low, high) in config.rules.items()]

    def check(self, example: Example) -> Drop | None:
        """The first rule that the record breaks."""
        for name, measure, low, high in self.rules:
            value = measure(example)
            if value is None:
                continue
            if (low is not None and value < low) or (high is not None and value > high):
                return Drop(name, round(value, 4))
        return None
