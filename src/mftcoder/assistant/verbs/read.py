"""`explain` and `review`: prose about code or about a diff. What is said about names and lines is held against the code."""

import re
from collections.abc import Mapping

from mftcoder.assistant.checks.patches import FilePatch, parse_patch
from mftcoder.assistant.checks.replies import prose_of
from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.model import Model, Written
from mftcoder.assistant.rounds import Proposal, RefusedAnswer, conversation, until_accepted
from mftcoder.curation.example import fenced
from mftcoder.curation.mining.languages.grammars import title_of
from mftcoder.errors import ConfigError

MOST_CODE = 24_000
_LEAST_WORDS = 3
_NAMED = re.compile(r"(?<!`)`([A-Za-z_]\w*)(?:\(\))?`(?!`)")
_FINDING = re.compile(r"[-*\s]*`?([^\s:`]+):(\d{1,7})`?:?\s+(\S.*)")
_NOTHING = re.compile(r"\W*no findings\W*\Z", re.IGNORECASE)
_REVIEW = (
    "Review this diff. Report faults only: bugs, missing cases, unsafe code. Write one line for each, as PATH:LINE: what is wrong, "
    "with a line of the new file that the diff adds. If there is no fault, write: No findings."
)


def explain(model: Model, file: SourceFile, function: FunctionText | None, *, rounds: int) -> Proposal:
    """What a function or a file does, in prose. Names between backticks that the file does not have are listed."""
    code = function.text if function else file.text
    if not code.strip():
        raise ConfigError(f"{file.name}: is empty, so there is nothing to explain")
    if len(code) > MOST_CODE:
        raise ConfigError(
            f"{file.name}: has {len(code):,} characters, more than {MOST_CODE:,}. Name one function of it"
        )
    task = f"Explain what this {title_of(file.language)} code does, step by step, in short sentences."
    messages = conversation("You explain code.", task, fenced(code, file.language))
    what = function.place if function else file.name
    text, refusals = until_accepted(model, messages, _explanation, rounds=rounds, what=what)
    unknown = sorted({name for name in _NAMED.findall(text) if not re.search(rf"\b{name}\b", file.text)})
    notes = (f"not in the file: {', '.join(unknown)}",) if unknown else ()
    return Proposal("explain", file, text, notes=notes, refusals=refusals)


def _explanation(reply: Written) -> str:
    """Prose with sentences of its own. Code that is only repeated explains nothing."""
    text = prose_of(reply)
    said = re.sub(r"```.*?(```|\Z)", " ", text, flags=re.DOTALL)
    if len(re.findall(r"[^\W\d_]{2,}", said)) < _LEAST_WORDS:
        raise RefusedAnswer("no_prose", "The answer says nothing outside of code. Explain in sentences.")
    return text


def review(model: Model, diff: str, *, rounds: int) -> Proposal:
    """Findings about lines that a diff adds, one a line. Findings about other lines are left out and counted."""
    if len(diff) > MOST_CODE:
        raise ConfigError(f"the diff has {len(diff):,} characters, more than {MOST_CODE:,}. Review it in parts")
    try:
        files = parse_patch(_without_message(diff))
    except RefusedAnswer as error:
        raise ConfigError(f"the diff cannot be read. {error.why}") from error
    added = _added(files)
    messages = conversation("You review changes of code.", _REVIEW, fenced(_numbered(files), "diff"))

    (findings, dropped), refusals = until_accepted(
        model, messages, lambda reply: _findings(prose_of(reply), added), rounds=rounds, what="the diff"
    )
    notes = (f"{dropped} findings left out: they name no line that the diff adds",) if dropped else ()
    return Proposal("review", None, "\n".join(findings) or "No findings.", notes=notes, refusals=refusals)


def _without_message(diff: str) -> str:
    """A diff without what git writes around it: a commit's message above, binary content, the signature of `git format-patch`."""
    start = re.search(r"^(?:diff --git |--- (?!\n))", diff, re.MULTILINE)
    text = (diff[start.start() :] if start else diff).split("\n-- \n")[0]
    return re.sub(r"^GIT binary patch\n.*?(?=^diff --git |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)


def _added(files: list[FilePatch]) -> Mapping[str, frozenset[int]]:
    """The lines that a diff adds, by file."""
    found: dict[str, set[int]] = {}
    for file in files:
        found.setdefault(file.new_name, set()).update(row for hunk in file.hunks for row in hunk.added)
    return {name: frozenset(rows) for name, rows in found.items()}


def _numbered(files: list[FilePatch]) -> str:
    """The added lines with their numbers, and the removed ones: a model that counts lines counts them wrong."""
    lines = []
    for file in files:
        lines.append(f"+++ {file.new_name}")
        for hunk in file.hunks:
            rows = range(max(hunk.new_start, 1), max(hunk.new_start, 1) + len(hunk.new))
            new = set(hunk.new)
            lines += [f"      - {line}" for line in map(str.rstrip, hunk.old) if f"{line}\n" not in new]
            lines += [
                f"{row:5} {'+' if row in hunk.added else ' '} {line.rstrip()}"
                for row, line in zip(rows, hunk.new, strict=True)
            ]
    return "\n".join(lines)


def _findings(text: str, added: Mapping[str, frozenset[int]]) -> tuple[list[str], int]:
    """The findings about added lines, and the number of those about other lines."""
    if _NOTHING.match(text):
        return [], 0
    said = [found for line in text.splitlines() if (found := _FINDING.match(line))]
    if not said:
        raise RefusedAnswer("no_findings", "The answer has no line of the form PATH:LINE: what is wrong.")
    kept = [
        f"{path}:{row}: {what.strip()}"
        for path, row, what in (found.groups() for found in said)
        if int(row) in added.get(path.removeprefix("b/"), ())
    ]
    if not kept:
        raise RefusedAnswer("other_lines", "No finding names a line that the diff adds.")
    return list(dict.fromkeys(kept)), len(said) - len(kept)
