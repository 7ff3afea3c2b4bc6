"""Read a YAML or JSON file with `section.field=value` overrides into a RunConfig. Reports all problems together, with field paths.

The published flat MFTCoder JSON is recognized by its keys and converted by `compat/mftcoder_json.py`. Files and tokenizers that the
config names are checked by `mft validate`, not here.
"""

import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from mftcoder.config.compat import mftcoder_json
from mftcoder.config.compat.aliases import suggest
from mftcoder.config.compat.mftcoder_json import Converted
from mftcoder.config.problems import kind_of, one_line, shown, validated
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError, DataError
from mftcoder.jsonl import unique_keys
from mftcoder.log import warn


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in the file `path`, with the overrides applied in order. ConfigError lists all problems with field paths.

    Warnings about a converted config are logged, a line each.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"path: is a {type(path).__name__}; give the path of a YAML or JSON file")
    _check_overrides(overrides)
    path = Path(path)
    loaded = read_config(path, overrides)
    for warning in loaded.warnings:
        warn(f"warning: {path}: {warning}")
    return parse_config(loaded.nested, origin=str(path))


def read_config(path: Path, overrides: Sequence[str] = ()) -> Converted:
    """The nested mapping of `path` and the overrides, not validated yet.

    A published flat config also takes overrides by its own keys: `seq_length=512`. There is no warning about a field that an override sets.
    """
    raw = read_config_file(path)
    published = mftcoder_json.is_published(raw)
    flat = [override for override in overrides if published and mftcoder_json.is_published_key(override.split("=")[0])]
    for override in flat:
        apply_override(raw, override)
    loaded = mftcoder_json.convert(raw, origin=str(path)) if published else Converted(raw)
    for override in overrides:
        if override not in flat:
            apply_override(loaded.nested, override)
    chosen = {override.partition("=")[0].strip() for override in overrides}
    warnings = tuple(warning for warning in loaded.warnings if warning.partition(":")[0] not in chosen)
    return Converted(loaded.nested, warnings)


def read_config_file(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, with the overrides applied in order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; give a YAML or JSON file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    value = _parse_text(text, path)
    _refuse_half_characters(value, f"{path}: ")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections (model, tasks, train, ...), not {kind_of(value)}")
    for override in overrides:
        apply_override(value, override)
    return value


def _parse_text(text: str, path: Path) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=unique_keys)
        except DataError as error:
            raise ConfigError(one_line(f"{path}: {error}")) from error
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
        except RecursionError as error:
            raise ConfigError(f"{path}: nested too deeply") from error
        except ValueError as error:  # an integer of more digits than Python reads
            raise ConfigError(f"{path}: not valid JSON: {error}") from error
    return parse_yaml(text, origin=str(path))


def _refuse_half_characters(value: Any, origin: str) -> None:
    """ConfigError for a lone surrogate in a key or a value (such as the JSON escape \\ud800): it is not text and cannot be in a file name."""
    try:
        problems = [f"{origin}{place}{shown(text)} holds half of a character" for place, text in _texts(value)]
    except RecursionError as error:
        raise ConfigError(f"{origin}nested too deeply") from error
    if problems:
        raise ConfigError.collect(problems)


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and text of each key and value that cannot be encoded as UTF-8."""
    if isinstance(value, str) and not _is_text(value):
        yield (f"{place}: " if place else ""), value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from _texts(key, place)
        yield from _texts(inner, f"{place}.{key}" if place else str(key))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_yaml(text: str, *, origin: str) -> Any:
    """A YAML 1.2 document as plain values: `1e-4` is a number and `no` is a text. ConfigError names the line."""
    try:
        return YAML(typ="safe", pure=True).load(StringIO(text))
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(str(error.problem or error.context or "broken").split())
        raise ConfigError(f"{origin}{line}: not valid YAML: {problem}") from error
    except (YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one field in place: `train.learning_rate=1e-4`, `tasks.tests.weight=2`. The value is read as YAML."""
    _refuse_half_characters(override, "override ")
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override '{override}': write section.field=value, for example train.learning_rate=1e-4")
    here: Any = raw
    for depth, key in enumerate(keys[:-1]):
        here = _step_into(here, key, ".".join(keys[: depth + 1]))
    value = parse_yaml(text, origin=f"override '{override}'")
    _refuse_half_characters(value, f"override {shown(override)}: ")
    if isinstance(here, list):
        raise ConfigError(f"override '{override}': '{'.'.join(keys[:-1])}' is a list; name one of its elements")
    here[keys[-1]] = value


def _step_into(here: Any, key: str, dotted: str) -> Any:
    """The mapping or list under `key`. In a list of tasks, the task with that name or index."""
    if isinstance(here, list):
        for index, element in enumerate(here):
            if isinstance(element, dict) and (element.get("name") == key or key == str(index)):
                return element
        raise ConfigError(f"override '{dotted}': nothing is named '{key}' there")
    inner = here.get(key)
    if isinstance(inner, str) and key not in ("output_dir",):
        inner = here[key] = {_SHORTHAND.get("kind" if key == "kind" else dotted, "path"): inner}
    if inner is None:
        inner = here[key] = {}
    if not isinstance(inner, dict | list):
        raise ConfigError(f"override '{dotted}': '{dotted}' is {kind_of(inner)}, not a section")
    return inner


_SHORTHAND = {"model": "model_name_or_path", "adapter": "type", "balancer": "name", "backend": "name", "kind": "name"}


def parse_config(raw: dict[str, Any], *, origin: str) -> RunConfig:
    """The validated config. ConfigError has one line `origin: field.path: what` for each problem."""
    return validated(RunConfig, raw, origin=origin, suggest=lambda location: suggest(location, raw))


def check_config(config: Any) -> None:
    """ConfigError for a path, a dict or anything else in the place of a config."""
    if not isinstance(config, RunConfig):
        raise ConfigError(f"config: is a {type(config).__name__}, not a RunConfig; make one with load_config(path)")


def _check_overrides(overrides: Any) -> None:
    if not isinstance(overrides, list | tuple) or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(f"overrides: give a list of texts such as ['train.learning_rate=1e-4'], not {overrides!r}")


def with_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same run with some fields changed: `train.learning_rate=1e-4`. ConfigError lists all problems."""
    check_config(config)
    _check_overrides(overrides)
    raw = config.model_dump(mode="json")
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, origin="config")


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML. `load_config` reads it back to the same config."""
    return yaml_text(config.model_dump(mode="json"))


def yaml_text(nested: dict[str, Any]) -> str:
    """A nested mapping as block-style YAML."""
    stream = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(nested, stream)
    return stream.getvalue()
