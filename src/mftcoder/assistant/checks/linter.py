"""What ruff says about a function, where ruff is installed. The code goes to its stdin: nothing is written, no config is read."""

import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import orjson

from mftcoder.assistant.functions import FunctionText
from mftcoder.errors import ConfigError

_COMMAND = ("check", "--isolated", "--no-cache", "--select", "E9,F,B,C4,PERF,SIM,RET,PIE,FURB", "--output-format", "json", "--exit-zero", "-")  # fmt: skip
_SECONDS = 60


@dataclass(frozen=True)
class Finding:
    """One finding, with its line in the file."""

    line: int
    code: str
    message: str

    @property
    def text(self) -> str:
        return f"line {self.line}: {self.code} {self.message}"

    @property
    def is_error(self) -> bool:
        """Whether it is a mistake and no matter of style."""
        return self.code.startswith(("E9", "F", "invalid"))


def is_installed() -> bool:
    return find_spec("ruff") is not None


def findings(function: FunctionText, text: str, lines: int) -> list[Finding]:
    """The findings in a text of the file, within the `lines` lines of the function."""
    if function.file.language != "python":
        return []
    return [one for one in all_findings(text) if function.first < one.line <= function.first + lines]


def all_findings(text: str) -> list[Finding]:
    """The findings in Python code; none without ruff."""
    if not is_installed():
        return []
    command = [sys.executable, "-m", "ruff", *_COMMAND]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_SECONDS)
        rows = orjson.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, orjson.JSONDecodeError) as error:
        raise ConfigError("ruff, which lints the code, did not answer. Try `python -m ruff --version`") from error
    return [Finding(row["location"]["row"], str(row["code"] or "invalid"), str(row["message"])) for row in rows]
