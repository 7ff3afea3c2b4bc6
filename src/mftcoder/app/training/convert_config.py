"""`mft convert-config`: a published flat MFTCoder JSON (or any config) in, the nested YAML out, on stdout.

The result is validated before it is printed, so what comes out is a config that `mft train` takes. Writes no file.
"""

from collections.abc import Sequence
from pathlib import Path

import click

from mftcoder.config.load import parse_config, read_config, yaml_text


def convert_config(config: Path, overrides: Sequence[str] = ()) -> None:
    """Print the YAML form of `config`; warnings go to stderr, problems are a ConfigError."""
    loaded = read_config(config, overrides)
    parse_config(loaded.nested, origin=str(config))
    for warning in loaded.warnings:
        click.echo(f"warning: {config}: {warning}", err=True)
    click.echo(yaml_text(loaded.nested), nl=False)
