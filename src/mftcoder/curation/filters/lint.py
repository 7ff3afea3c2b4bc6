"""Errors that ruff finds in the Python code of many records: one process for all of them."""

import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mftcoder.curation.example import MAX_PARSED, Example, parse_python
from mftcoder.errors import DataError
from mftcoder.jsonl import scratch_folder

_FOUND = re.compile(rb"(?:.*[/\\])?(\d+)-\d+\.py:\d+:\d+: ")
_COMMAND = ("check", "--isolated", "--no-cache", "--ignore-noqa", "--select", "E9,F", "--output-format", "concise", "--quiet", "--exit-zero")  # fmt: skip


def lint_errors(examples: Sequence[Example]) -> list[float | None]:
    """Errors of each record; None for one without Python code. Code that Python's parser refuses is one error, and ruff does not see it."""
    counts: Counter[int] = Counter()
    with scratch_folder("mftcoder-lint") as folder:
        judged = [_write(folder, number, example, counts) for number, example in enumerate(examples)]
        if any(folder.iterdir()):
            counts.update(_run(folder))
    return [float(counts[number]) if has_code else None for number, has_code in enumerate(judged)]


def _write(folder: Path, number: int, example: Example, counts: Counter[int]) -> bool:
    """Write what can be parsed as `<number>-<block>.py`; True if the record has Python code that is short enough."""
    codes = [code for code in example.python_codes if len(code) <= MAX_PARSED]
    for index, code in enumerate(codes):
        if parse_python(code) is None:
            counts[number] += 1
        else:
            (folder / f"{number}-{index}.py").write_text(textwrap.dedent(code), encoding="utf-8", errors="replace")
    return bool(codes)


def _run(folder: Path) -> Counter[int]:
    """Lines `path:row:column: code message`, counted as they come."""
    counts: Counter[int] = Counter()
    command = [sys.executable, "-m", "ruff", *_COMMAND, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ruff:
        assert ruff.stdout is not None
        assert ruff.stderr is not None
        for line in ruff.stdout:
            if found := _FOUND.match(line):
                counts[int(found[1])] += 1
        said = ruff.stderr.read().decode(errors="replace").strip()
    if ruff.returncode:
        raise DataError(
            f"ruff ended with exit code {ruff.returncode}: {said.splitlines()[-1] if said else 'no message'}"
        )
    return counts
