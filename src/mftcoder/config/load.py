"""YAML or JSON file plus `section.field=value` overrides -> RunConfig; every problem at once, each with its field path.

The published flat MFTCoder JSON is recognised by its keys and handed to `mftcoder_json.py`. Knows no model and no data: what
only the machine can tell (files, tokenizer) is `mft validate`'s.
"""

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from mftcoder.config import mftcoder_json
from mftcoder.config.aliases import suggest
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `path` describes, with overrides applied in order. ConfigError lists all problems with field paths."""
    raw = read_config_file(path)
    if mftcoder_json.is_published(raw):
        raw = mftcoder_json.convert(raw, origin=str(path)).nested
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, origin=str(path))


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, as it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; give a YAML or JSON file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    value = _parse_text(text, path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections (model, tasks, train, ...), not {_kind(value)}")
    return value


def _parse_text(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _no_doubles(pairs, path))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: nested too deeply") from error
    return parse_yaml(text, origin=str(path))


def _no_doubles(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise ConfigError(f"{path}: key '{doubled[0]}' stands there twice")
    return dict(pairs)


def parse_yaml(text: str, *, origin: str) -> Any:
    """A YAML 1.2 document as plain values (so `1e-4` is a number and `no` a word); ConfigError with the line."""
    try:
        return YAML(typ="safe", pure=True).load(StringIO(text))
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(str(error.problem or error.context or "broken").split())
        raise ConfigError(f"{origin}{line}: not valid YAML: {problem}") from error
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one field in place: `train.learning_rate=1e-4`, `tasks.tests.weight=2`; the value is read as YAML."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override '{override}': write section.field=value, for example train.learning_rate=1e-4")
    here: Any = raw
    for depth, key in enumerate(keys[:-1]):
        here = _step_into(here, key, ".".join(keys[: depth + 1]))
    value = parse_yaml(text, origin=f"override '{override}'")
    if isinstance(here, list):
        raise ConfigError(f"override '{override}': '{'.'.join(keys[:-1])}' is a list; name one of its elements")
    here[keys[-1]] = value


def _step_into(here: Any, key: str, dotted: str) -> Any:
    """The mapping or list under `key`; in a list of named things (tasks) the one of that name or index."""
    if isinstance(here, list):
        for index, element in enumerate(here):
            if isinstance(element, dict) and (element.get("name") == key or key == str(index)):
                return element
        raise ConfigError(f"override '{dotted}': nothing is named '{key}' there")
    inner = here.get(key)
    if isinstance(inner, str) and key not in ("output_dir",):
        inner = here[key] = {_SHORTHAND.get(dotted, "path"): inner}
    if inner is None:
        inner = here[key] = {}
    if not isinstance(inner, dict | list):
        raise ConfigError(f"override '{dotted}': '{dotted}' is {_kind(inner)}, not a section")
    return inner


_SHORTHAND = {"model": "model_name_or_path", "adapter": "type", "balancer": "name", "backend": "name"}


def parse_config(raw: dict[str, Any], *, origin: str) -> RunConfig:
    """The validated config; ConfigError with one line `origin: field.path: what` a problem."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = [_problem_line(detail, raw, origin) for detail in error.errors(include_url=False)]
        raise ConfigError.collect(dict.fromkeys(problems)) from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error


def _problem_line(detail: Any, raw: dict[str, Any], origin: str) -> str:
    field = _field_path(detail["loc"], raw)
    if detail["type"] == "extra_forbidden":
        return f"{origin}: {field}: unknown key.{suggest(detail['loc'])}"
    if detail["type"] == "missing":
        return f"{origin}: {field}: is required"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error" and not detail["loc"]:
        return f"{origin}: {message}"
    shown = "" if detail["type"] == "value_error" else f", not {_shown(detail['input'])}"
    return f"{origin}: {field}: {message}{shown}"


def _field_path(loc: tuple[str | int, ...], raw: dict[str, Any]) -> str:
    """`tasks.tests.weight` rather than `tasks.1.weight`, if the second task has a name."""
    parts = [str(part) for part in loc]
    if len(loc) > 1 and loc[0] == "tasks" and isinstance(loc[1], int):
        tasks = raw.get("tasks")
        if isinstance(tasks, dict):
            parts[1] = str(list(tasks)[loc[1]])
        elif isinstance(tasks, list) and isinstance(tasks[loc[1]], dict):
            parts[1] = str(tasks[loc[1]].get("name") or loc[1])
    return ".".join(parts) or "config"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", int: "a number", float: "a number", bool: "a switch"}
    return "empty" if value is None else names.get(type(value), type(value).__name__)


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back to the same config."""
    stream = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()
