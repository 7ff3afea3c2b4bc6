"""Which rules a filter step uses, and with which bounds: read from a recipe, and applied to records. Also the options of `difficulty`."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from pydantic import model_validator

from mftcoder.config.section import PathText, Positions, PositiveInt, Section
from mftcoder.curation.example import Drop, Example
from mftcoder.curation.filters.rules import PRESETS, RULES, Bounds, Measure, Names, Value
from mftcoder.errors import DataError
from mftcoder.registry import did_you_mean


class FilterConfig(Section):
    """A preset, a list of rules, or a mapping from rules to what they keep (true: the default, false: without this rule)."""

    rules: dict[str, Bounds | Names]
    """Rule -> lowest and highest value that is kept, or the names that are kept."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if isinstance(value, list | tuple):
            value = {str(name): True for name in value}
        if not isinstance(value, dict) or set(value) == {"rules"}:
            return value
        return {"rules": _kept_by_all(value)}


def _kept_by_all(given: Mapping[str, Any]) -> dict[str, Bounds | Names]:
    """What each rule keeps. ValueError with every problem."""
    problems = []
    chosen: dict[str, Bounds | Names] = {}
    preset = given.get("preset")
    if preset is not None and preset not in PRESETS:
        problems.append(f"unknown preset '{preset}'.{did_you_mean(str(preset), PRESETS)}")
    for name in PRESETS.get(preset, ()) if isinstance(preset, str) else ():
        chosen[name] = RULES[name].keeps
    for name, value in given.items():
        if name == "preset":
            continue
        if name in PRESETS:
            problems.append(
                f"'{name}' is a preset, not a rule: name one preset alone, or beside rules as `preset: {name}` in a recipe"
            )
        elif name not in RULES:
            problems.append(f"unknown rule '{name}'.{did_you_mean(str(name), [*RULES, 'preset'])}")
        elif value is False:
            chosen.pop(name, None)
        elif value is True or value is None:
            chosen[name] = RULES[name].keeps
        elif (keeps := (_names if RULES[name].keeps_names else _bounds)(value)) is None:
            expected = "a list of names" if RULES[name].keeps_names else "[lowest, highest] with null for no bound"
            problems.append(f"rule '{name}': give {expected}, or true, or false")
        else:
            chosen[name] = keeps
    if not chosen and not problems:
        problems.append("no rule is left in it")
    if problems:
        raise ValueError("; ".join(problems))
    return chosen


def _names(value: Any) -> Names | None:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) and name for name in value):
        return None
    return tuple(value)


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
        self.rules = config.rules
        self.takes_whole_blocks = any(RULES[name].measure_all for name in self.rules)
        needed = sorted({RULES[name].needs for name in self.rules} - {""})
        missing = [module for module in needed if importlib.util.find_spec(module) is None]
        if missing:
            raise DataError(*(_advice(module, self.rules) for module in missing))

    def check_all(self, examples: Sequence[Example]) -> list[Drop | None]:
        """For each record, the first rule that it breaks."""
        drops: list[Drop | None] = [None] * len(examples)
        for is_bulk, names in groupby(self.rules, lambda name: RULES[name].measure_all is not None):
            left = [index for index, drop in enumerate(drops) if drop is None]
            found = self._in_bulk if is_bulk else self._one_by_one
            for index, drop in zip(left, found(list(names), [examples[index] for index in left]), strict=True):
                drops[index] = drop
        return drops

    def _one_by_one(self, names: Sequence[str], examples: Sequence[Example]) -> Iterator[Drop | None]:
        """All rules of a record before the next record, because they share its syntax trees and these are large."""
        checks = [(name, measure, self.rules[name]) for name in names if (measure := RULES[name].measure)]
        for example in examples:
            yield self._first_drop(checks, example)
            example.release()

    def _first_drop(self, checks: Sequence[tuple[str, Measure, Bounds | Names]], example: Example) -> Drop | None:
        for name, measure, keeps in checks:
            value = measure(example)
            if value is not None and not _is_kept(value, keeps):
                return self._drop(name, value)
        return None

    def _in_bulk(self, names: Sequence[str], examples: Sequence[Example]) -> Iterator[Drop | None]:
        values = {name: RULES[name].measure_all(examples) for name in names}  # type: ignore[misc]  # only such rules come here
        for index in range(len(examples)):
            yield next((drop for name in names if (drop := self._drop(name, values[name][index]))), None)

    def _drop(self, name: str, value: Value) -> Drop | None:
        if value is None or _is_kept(value, self.rules[name]):
            return None
        return Drop(name, value if isinstance(value, str) else round(value, 4), is_private=RULES[name].is_private)


def _is_kept(value: float | str, keeps: Bounds | Names) -> bool:
    if isinstance(value, str):
        return value in keeps
    low, high = keeps
    return (low is None or value >= low) and (high is None or value <= high)  # type: ignore[operator]  # bounds of numbers


def _advice(module: str, rules: Mapping[str, Any]) -> str:
    names = " and ".join(f"'{name}'" for name in rules if RULES[name].needs == module)
    return (
        f"filter: {names} needs {module.replace('_', '-')}, which is not installed. "
        "Install it with: pip install 'mftcoder[curate]', or leave the rule out"
    )


class DifficultyConfig(Section):
    """Options of the step `difficulty`."""

    model: PathText
    """The model that reads the records: a Hub id, a folder or a .gguf file, as in the config of a run."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of its weights and activations."""
    chat_template: str = "auto"
    """The template of question and answer; auto is the tokenizer's own."""
    keep: tuple[float | None, float | None] = (None, 1.0)
    """Lowest and highest difficulty that is kept; null is no bound."""
    label: bool = False
    """Write the value into the field `difficulty` of each kept record."""
    max_length: Positions = 1024
    """Positions that are read of a record; the rest of the answer is left out."""
    batch_positions: PositiveInt = 2048
    """Positions of a forward pass, padding included: it bounds the memory."""

    @model_validator(mode="after")
    def _keeps_something(self) -> "DifficultyConfig":
        low, high = self.keep
        if low is None and high is None and not self.label:
            raise ValueError("`keep` has no bound and `label` is false: the step would do nothing")
        if low is not None and high is not None and low > high:
            raise ValueError(f"keep: {low:g} is more than {high:g}")
        return self

    def keeps(self, value: float) -> bool:
        """Whether a record of this difficulty is kept; a bound itself is inside."""
        low, high = self.keep
        return (low is None or value >= low) and (high is None or value <= high)
