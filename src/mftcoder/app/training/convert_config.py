"""`mft convert-config`: a published flat MFTCoder JSON (or any config) as nested YAML. Writes no file."""

from collections.abc import Sequence
from pathlib import Path

from mftcoder.config.load import parse_config, read_config, yaml_text
from mftcoder.log import warn


def convert_config(config: Path, overrides: Sequence[str] = ()) -> str:
    """The YAML form of `config`, which `mft train` accepts: it is validated. ConfigError lists all problems."""
    loaded = read_config(config, overrides)
    parse_config(loaded.nested, origin=str(config))
    for warning in loaded.warnings:
        warn(f"warning: {config}: {warning}")
    return yaml_text(loaded.nested)
