"""Unified diffs: made from two texts, and applied strictly: every line that a patch names must stand exactly where it says."""

import difflib
import re
from dataclasses import dataclass

from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.rounds import RefusedAnswer

_HUNK = re.compile(r"@@ -(\d{1,7})(?:,(\d{1,7}))? \+(\d{1,7})(?:,(\d{1,7}))? @@")
_NO_END = "\\ No newline at end of file"
_STARTS_HEADER = ("diff --git ", "index ", "new file mode", "deleted file mode", "old mode", "new mode", "similarity ", "dissimilarity ", "rename ", "copy ", "Binary files ")  # fmt: skip


@dataclass(frozen=True)
class Hunk:
    """Lines that are replaced. Each keeps its line end; the last one of a file may have none."""

    start: int  # in the old file, from 0
    new_start: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    added: tuple[int, ...]  # the lines in the new file that the patch adds, from 1


@dataclass(frozen=True)
class FilePatch:
    """The hunks of one file. `/dev/null` stands for no file."""

    old_name: str
    new_name: str
    hunks: tuple[Hunk, ...]


def make_patch(name: str, old: str, new: str) -> str:
    """The unified diff that `git apply` and `patch -p1` take; empty for equal texts."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    end = "\t" if " " in name else ""  # `patch` takes a blank for the end of a name, unless a tab is
    found = difflib.unified_diff(before, after, f"a/{name}{end}", f"b/{name}{end}")
    return "".join(line if line.endswith("\n") else f"{line}\n{_NO_END}\n" for line in found)


def patch_of(file: SourceFile, new: str) -> str:
    """The unified diff of a file and another text for it, with the line ends and the byte order mark that the file has."""
    return make_patch(file.name, file.content.decode(), file.bytes_of(new).decode())


def parse_patch(text: str) -> list[FilePatch]:
    """The files of a unified diff. RefusedAnswer for what is none."""
    lines, at, found = text.split("\n"), 0, []
    while at < len(lines):
        if lines[at].startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ "):
            names = _name(lines[at]), _name(lines[at + 1])
            hunks, at = _hunks(lines, at + 2)
            found.append(FilePatch(*names, tuple(hunks)))
        elif not lines[at].strip() or lines[at].startswith(_STARTS_HEADER):
            at += 1
        else:
            raise RefusedAnswer("no_patch", f"This line is no part of a unified diff: {lines[at][:80]!r}.")
    if not any(one.hunks for one in found):
        raise RefusedAnswer("no_patch", "The diff changes nothing.")
    return found


def apply_patch(patch: str, name: str, old: str) -> str:
    """The file after a patch that may change this file only. RefusedAnswer if it names another one, or does not apply."""
    files = parse_patch(patch)
    for one in files:
        for path in (one.old_name, one.new_name):
            if path.startswith("/") or ".." in path.split("/") or "\\" in path:
                raise RefusedAnswer("other_file", f"The patch names a path outside the folder: {path[:100]}.")
            if path != name:
                raise RefusedAnswer("other_file", f"The patch is for {path[:100]}, not for {name}.")
    lines, done = re.findall(r"[^\n]*\n|[^\n]+", old), 0
    made: list[str] = []
    for hunk in (hunk for one in files for hunk in one.hunks):
        end = hunk.start + len(hunk.old)
        if hunk.start < done or tuple(lines[hunk.start : end]) != hunk.old:
            raise RefusedAnswer("does_not_apply", f"The patch does not apply at line {hunk.start + 1} of {name}.")
        made += [*lines[done : hunk.start], *hunk.new]
        done = end
    return "".join([*made, *lines[done:]])


def _name(line: str) -> str:
    """The path in a header, without `a/`, `b/` and a time stamp."""
    path = line[4:].split("\t")[0].strip()
    return path[2:] if path[:2] in ("a/", "b/") else path


def _hunks(lines: list[str], at: int) -> tuple[list[Hunk], int]:
    hunks = []
    while at < len(lines) and (header := _HUNK.match(lines[at])):
        sizes = [int(number) if number else 1 for number in (header[2], header[4])]
        hunk, at = _hunk(lines, at + 1, int(header[1]), int(header[3]), sizes)
        hunks.append(hunk)
    return hunks, at


def _hunk(lines: list[str], at: int, start: int, new_start: int, sizes: list[int]) -> tuple[Hunk, int]:
    """One hunk, read until it has as many lines as its header says."""
    sides: dict[str, list[str]] = {"-": [], "+": []}
    added: list[int] = []
    marks = ""
    while len(sides["-"]) < sizes[0] or len(sides["+"]) < sizes[1] or lines[at : at + 1] == [_NO_END]:
        line = lines[at] if at < len(lines) else "?"
        if line == _NO_END:
            for side in marks:
                sides[side][-1] = sides[side][-1].removesuffix("\n")
        else:
            marks = {" ": "-+", "": "-+", "-": "-", "+": "+"}.get(line[:1], "")
            if not marks:
                raise RefusedAnswer(
                    "no_patch", f"A hunk of the diff is shorter than its header says, at {line[:80]!r}."
                )
            for side in marks:
                sides[side].append(f"{line[1:]}\n")
            if marks == "+":
                added.append(max(new_start, 1) + len(sides["+"]) - 1)
        at += 1
    if [len(sides["-"]), len(sides["+"])] != sizes:
        raise RefusedAnswer("no_patch", "A hunk of the diff has other lines than its header says.")
    begin = start - 1 if sizes[0] else start
    return Hunk(max(begin, 0), new_start, tuple(sides["-"]), tuple(sides["+"]), tuple(added)), at
