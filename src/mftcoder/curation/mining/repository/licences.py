"""The licence of a file: what its header says, or else what the nearest licence file above it is.

Common licences are recognised by their name and a few of their own words. Others are `unknown`.
"""

import os
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

from mftcoder.curation.mining.sources import UNKNOWN

HEADER_CHARS = 3000
_MAX_BYTES = 200_000
_LEADING = re.compile(
    r"""(?:\s+|//[^\n]*|\#[^\n]*|/\*.*?(?:\*/|\Z)|\"{3}.*?(?:\"{3}|\Z)|'{3}.*?(?:'{3}|\Z))*""", re.DOTALL
)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([^\n]*)")
_EXPRESSION = re.compile(r"\(?[A-Za-z0-9.+-]+(?:\s+(?:AND|OR|WITH)\s+\(?[A-Za-z0-9.+-]+\)?)*\)?")
_NAMES = re.compile(r"^(un)?licen[cs]e([-_.][\w.-]+)?$|^copying([-_.][\w.-]+)?$|^copyright$", re.IGNORECASE)
_GNU = re.compile(r"gnu (affero |lesser |library )?general public license.{0,200}?version (\d)(\.\d)?")
_GNU_NAMES = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL"}
_TITLED: tuple[tuple[str, str], ...] = (
    ("MPL-2.0", r"mozilla public license.{0,20}2\.0"),
    ("EPL-2.0", r"eclipse public license.{0,20}2\.0"),
    ("EPL-1.0", r"eclipse public license.{0,20}1\.0"),
    ("Apache-2.0", r"apache license,? version 2\.0"),
    ("BSL-1.0", r"boost software license.{0,20}version 1\.0"),
    ("CC0-1.0", r"cc0 1\.0 universal"),
    ("MIT", r"\bmit licen[cs]e\b"),
    ("Python-2.0", r"python software foundation license version 2"),
)
_WORDED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Unlicense", ("free and unencumbered software released into the public domain",)),
    ("Zlib", ("provided 'as-is', without any express or implied warranty", "altered source versions must be plainly")),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "all advertising materials mentioning")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "to endorse or promote products")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms", "redistributions in binary form must")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any purpose with or without fee",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy",)),
)
_TITLE_CHARS = 400  # of a licence text, where its name is; names of other licences come later


def licence_of_text(text: str) -> str:
    """The SPDX name of a licence text; several are joined by AND; `unknown` for none.

    The names say nothing of later versions: GPL-2.0 can be "or later" too.
    """
    plain = _plain_text(text)
    titled = [name for name in _titled(plain[:_TITLE_CHARS]) if name != "MIT"]  # its words tell more than its name
    return titled[0] if titled else _all_of(plain)


def _plain_text(text: str) -> str:
    plain = " ".join(re.sub(r"[*#\"“”`]+|//+", " ", text.replace("’", "'")).lower().split())
    return plain.replace(" of this software in source", " in source")


def _all_of(plain: str) -> str:
    """Every licence that a text has the words or the name of."""
    found = [name for name, words in _WORDED if all(word in plain for word in words)]
    kinds = {name.split("-")[0]: name for name in reversed(found)}
    return " AND ".join(sorted({*kinds.values(), *_titled(plain)})) or UNKNOWN


def _titled(plain: str) -> list[str]:
    """The licences that a text names, the first one first."""
    found = [(match.start(), name) for name, words in _TITLED if (match := re.search(words, plain))]
    gnu = _GNU.search(plain)
    if gnu:
        small = gnu[3] or ".0"
        found.append((gnu.start(), f"{_GNU_NAMES.get(gnu[1] or '', 'GPL')}-{gnu[2]}{small}"))
    return [name for _, name in sorted(found)]


def licence_in_header(text: str) -> str:
    """What the comments at the top of a source file say: an SPDX identifier, or a licence's words."""
    leading = _LEADING.match(text[:HEADER_CHARS])
    head = leading[0] if leading else ""
    spdx = _SPDX.search(head)
    if spdx:
        named = _EXPRESSION.match(spdx[1].strip())
        return named[0].strip("()") if named else UNKNOWN
    return _all_of(_plain_text(head))


class Licences:
    """The licences of the files below a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._nearest = cache(self._of_folder)

    def of(self, path: str, text: str) -> str:
        """The licence of the file at `path`, which is relative to the folder."""
        stated = licence_in_header(text)
        return stated if stated != UNKNOWN else self._nearest(path.rpartition("/")[0])

    def _of_folder(self, folder: str) -> str:
        """What a folder's licence files say; without such a file, what holds for the folder around it."""
        files = licence_files(self._folder / folder)
        if files or not folder:
            return _of_files(files or self._above())
        return self._nearest(folder.rpartition("/")[0])

    def _above(self) -> list[Path]:
        """The nearest licence files above the mined folder, up to the top of the git repository that it belongs to."""
        mined = self._folder.resolve()
        outer = [mined, *mined.parents]
        top = next((number for number, folder in enumerate(outer) if os.path.lexists(folder / ".git")), 0)
        return next((files for folder in outer[1 : top + 1] if (files := licence_files(folder))), [])


def _of_files(files: list[Path]) -> str:
    """The licences of all these files."""
    found = {licence_of_text(_read(file)) for file in files} - {UNKNOWN}
    return " AND ".join(sorted(found)) or UNKNOWN


def licence_files(folder: Path) -> list[Path]:
    """The files of a folder that hold a licence, by their names."""
    try:
        return sorted(path for path in folder.iterdir() if _NAMES.match(path.name) and path.is_file())
    except OSError:
        return []


def _read(file: Path) -> str:
    try:
        return file.read_bytes()[:_MAX_BYTES].decode(errors="replace")
    except OSError:
        return ""


def is_allowed(licence: str, allowed: Collection[str]) -> bool:
    """Whether the licence is among those allowed: of `A OR B` one must be, of `A AND B` both.

    Names count without regard to case, and without `-only`, `-or-later` and exceptions (`WITH ...`).
    """
    names = {_plain(name) for name in allowed}
    text = re.sub(r"\s+WITH\s+\S+|[()]", "", licence)
    return any(all(_plain(name) in names for name in one.split(" AND ")) for one in text.split(" OR "))


def _plain(name: str) -> str:
    return re.sub(r"(-only|-or-later|\+)$", "", name.strip().lower())
