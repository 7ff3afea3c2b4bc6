"""What commands share: types of values, and options that several commands have, each declared once."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mftcoder.app.scoring.options import GenerateOptions

PATH = click.Path(path_type=Path)
LARGEST = 2**31 - 1
COUNT = click.IntRange(1, LARGEST)
SEED = click.IntRange(-(2**63), 2**63 - 1)


class Finite(click.FloatRange):
    """A number within a range that is neither infinite nor nan."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number = float(super().convert(value, parameter, context))
        if not math.isfinite(number) or abs(number) > LARGEST:
            self.fail(f"{value} is out of range.", parameter, context)
        return number


class PageFile(click.Path):
    """A path of a page to write. A name that ends in anything but .html may be a file of the user's that the page would replace."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path, or click's error."""
        path = Path(value)
        if path.suffix != ".html":
            self.fail(f"{path}: the name of a page ends in .html", parameter, context)
        return path


class Names(click.ParamType):
    """`a,b` -> ("a", "b"): names without blanks around them, each once, in the order given. Without a name it is an error."""

    name = "names"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in str(value).split(",") if name.strip()))
        if not names:
            self.fail("is empty: names, separated by commas, are expected", parameter, context)
        return names


class WholeNumbers(click.ParamType):
    """`1,10` -> (1, 10): whole numbers from `least`, each once, in the order given."""

    name = "numbers"

    def __init__(self, least: int = 0):
        self.least = least

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(re.fullmatch("[0-9]{1,18}", part) and int(part) >= self.least for part in parts):
            self.fail(
                f"{value}: whole numbers from {self.least}, separated by commas, are expected", parameter, context
            )
        return tuple(dict.fromkeys(map(int, parts)))


def config_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """CONFIG and its overrides, for the commands that start from a config."""
    command = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")(command)
    return click.argument("config", type=PATH)(command)


def paths_to_out(command: Callable[..., Any]) -> Callable[..., Any]:
    """PATHS and --out, for the commands that take records through one step of curation."""
    command = click.option("--out", type=PATH, required=True, help="Output directory.")(command)
    return click.argument("paths", type=PATH, nargs=-1, required=True)(command)


data_dir = click.option(
    "--data-dir", type=PATH, metavar="FOLDER", help="Folder with the benchmarks' data (default: download from the Hub)."
)
checkpoint = click.option(
    "--checkpoint",
    default=GenerateOptions.checkpoint,
    help="Checkpoint of the run folder: best, latest or a name such as step-00000020.",
)
device = click.option("--device", default=GenerateOptions.device, help="auto, cpu, cuda or cuda:1.")
template = click.option("--template", help="Chat template (default: the run's, else the tokenizer's own).")
load = click.option("--load", type=click.Choice(["4bit", "8bit"]), help="Hold the weights in 4 or 8 bits.")
engine = click.option(
    "--engine",
    type=click.Choice(["auto", "transformers", "openvino"]),
    default="auto",
    help="auto: openvino on a CPU, where it is installed and can run the model.",
)
dtype = click.option(
    "--dtype", type=click.Choice(["bfloat16", "float32"]), help="Dtype of the weights (default: the model's own)."
)
limit = click.option("--limit", type=COUNT, help="Take only the first N problems of each benchmark.", metavar="N")


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--checkpoint, --dtype, --device and --trust-remote-code, for the commands that ask a model."""
    trust = click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
    return checkpoint(dtype(device(trust(command))))
