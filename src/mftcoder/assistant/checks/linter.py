"""What a linter says about a function: ruff about Python, where it is installed; vet, g++, clippy or javac about other languages.

Ruff reads its stdin: nothing is written, no config is read. The others are compilers, which run in the sandbox.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import orjson

from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText
from mftcoder.errors import ConfigError

_COMMAND = ("check", "--isolated", "--no-cache", "--select", "E9,F,B,C4,PERF,SIM,RET,PIE,FURB", "--output-format", "json", "--exit-zero", "-")  # fmt: skip
_SECONDS = 60
_SAID = re.compile(
    r"(?P<vet>vet: )?(?:\./)?(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)?\s*(?:(?:fatal )?(?P<kind>error|warning|note|help)\b(?:\[\w+\])?:\s*)?(?P<message>.+)"
)
TOOLS = {
    "python": "ruff",
    "go": "go vet",
    "cpp": "g++ -Wall -Wextra",
    "rust": "clippy or rustc",
    "java": "javac -Xlint",
}
"""By language, what lints it."""
Say = Callable[[SourceFile, str], str]
"""What the tool of a language with types prints about a text in the place of a file."""


@dataclass(frozen=True)
class Finding:
    """One finding, with its line in the file. An error is a mistake and no matter of style."""

    line: int
    code: str
    message: str
    is_error: bool

    @property
    def text(self) -> str:
        return f"line {self.line}: {self.code} {self.message}".replace("  ", " ")


def is_installed() -> bool:
    return find_spec("ruff") is not None


def findings(function: FunctionText, text: str, lines: int, say: Say) -> list[Finding]:
    """The findings in a text of the file, within the `lines` lines of the function; errors of a compiler wherever they are."""
    found = all_findings(function.file, text, say)
    anywhere = function.file.language != "python"
    return [one for one in found if function.first < one.line <= function.first + lines or (anywhere and one.is_error)]


def all_findings(file: SourceFile, text: str, say: Say) -> list[Finding]:
    """The findings in a text of the file. None for Python without ruff and for JavaScript."""
    if file.language == "python":
        return _of_ruff(text)
    if file.language not in TOOLS:
        return []
    found = (_SAID.match(line) for line in say(file, text).splitlines())
    return [_finding(one) for one in found if one and one["kind"] not in ("note", "help")]


def _finding(said: re.Match[str]) -> Finding:
    """A line of a compiler. Its code stands at the end in C++, at the start in Java; others have none."""
    message = said["message"].strip()
    code = re.search(r"\[-W([\w=+-]+)\]\Z|\A\[(\w+)\]", message)
    is_error = said["kind"] == "error" or said["vet"] is not None
    is_here = said["file"].startswith("answer.") or said["file"].endswith(".java")
    return Finding(int(said["line"]) if is_here else 0, (code[1] or code[2]) if code else "", message[:300], is_error)


def _of_ruff(text: str) -> list[Finding]:
    if not is_installed():
        return []
    command = [sys.executable, "-m", "ruff", *_COMMAND]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=_SECONDS)
        rows = orjson.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, orjson.JSONDecodeError) as error:
        raise ConfigError("ruff, which lints the code, did not answer. Try `python -m ruff --version`") from error
    made = []
    for row in rows:
        code = str(row["code"] or "invalid")
        is_error = code.startswith(("E9", "F", "invalid"))
        made.append(Finding(row["location"]["row"], code, str(row["message"]), is_error))
    return made
