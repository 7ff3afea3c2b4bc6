"""The licence of a file: its header before the nearest licence file, names that a text really bears, and the filter."""

from collections import Counter
from pathlib import Path

import pytest

from mftcoder.curation.mining.mine import MiningOptions, mine
from mftcoder.curation.mining.repository.licences import Licences, is_allowed, licence_in_header, licence_of_text

MIT = """MIT License

Copyright (c) 2026 A Person

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software ...
"""
APACHE = '# Licensed under the Apache License, Version 2.0 (the "License");\n'
CODE = '''{header}
def moved{n}(value, low, high):
    """Return value moved into the range from low to high."""
    if value < low:
        return low
    return high if value > high else value + {n}
'''
SYSTEM = Path("/usr/share/common-licenses")


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="needs Debian's licence texts")
@pytest.mark.parametrize(
    ("file", "name"),
    [
        *(("Apache-2.0", "Apache-2.0"), ("BSD", "BSD-3-Clause"), ("CC0-1.0", "CC0-1.0"), ("GPL-2", "GPL-2.0")),
        *(("GPL-3", "GPL-3.0"), ("LGPL-2", "LGPL-2.0"), ("LGPL-2.1", "LGPL-2.1"), ("LGPL-3", "LGPL-3.0")),
        *(("MPL-2.0", "MPL-2.0"), ("Artistic", "unknown"), ("GFDL-1.3", "unknown")),
    ],
)
def test_whole_licence_texts_are_known_by_their_title(file: str, name: str) -> None:
    if not (SYSTEM / file).is_file():
        pytest.skip(f"{file} is not there")
    assert licence_of_text((SYSTEM / file).read_text(errors="replace")) == name


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("// SPDX-License-Identifier: MIT\n", "MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0-only WITH Classpath-exception-2.0 */\n", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("# SPDX-License-Identifier: (Apache-2.0 OR MIT)\n", "Apache-2.0 OR MIT"),
        ("# SPDX-License-Identifier: ???\n", "unknown"),
        ("#!/usr/bin/python\n# This program is free software under the GNU General Public License as published by\n# the FSF; either version 2\n", "GPL-2.0"),
        ("/*\n * Licensed to the ASF ... under the Apache License, Version 2.0\n */\n", "Apache-2.0"),
        ("// Licensed under the Apache License, Version 2.0 <A> or the MIT license <M>, at your option.\n", "Apache-2.0 AND MIT"),
        ("// Use of this source code is governed by a BSD-style license.\n", "unknown"),
        ('LICENSE = """Licensed under the Apache License, Version 2.0"""\n', "unknown"),
        ('"""Written under the Apache License, Version 2.0."""\nimport os\n', "Apache-2.0"),
    ],
)  # fmt: skip
def test_a_header_is_the_comments_at_the_top(head: str, name: str) -> None:
    assert licence_in_header(head) == name


def test_two_licences_in_one_text_are_both_named() -> None:
    bsd = "Redistribution and use in source and binary forms ... Redistributions in binary form must reproduce ..."
    assert licence_of_text(f"{MIT}\n{'-' * 500}\n{bsd}") == "BSD-2-Clause AND MIT"


def test_the_nearest_licence_file_holds_and_the_header_comes_before_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "LICENSE").write_text(MIT)
    (tmp_path / "a" / "COPYING.txt").write_text("Apache License, Version 2.0, January 2004")
    licences = Licences(tmp_path)
    assert licences.of("m.py", "import os\n") == "MIT"
    assert licences.of("a/b/m.py", "import os\n") == "Apache-2.0"
    assert licences.of("a/b/m.py", "# SPDX-License-Identifier: ISC\n") == "ISC"
    (tmp_path / "LICENSE-APACHE").write_text("Apache License, Version 2.0, January 2004")
    assert Licences(tmp_path).of("m.py", "") == "Apache-2.0 AND MIT"
    (tmp_path / "a" / "LICENSE").write_text("All rights reserved.")
    (tmp_path / "a" / "COPYING.txt").unlink()
    assert Licences(tmp_path).of("a/b/m.py", "") == "unknown"


def test_a_folder_inside_a_repository_is_under_the_repositorys_licence(tmp_path: Path) -> None:
    mined = tmp_path / "outside" / "repository" / "src" / "package"
    mined.mkdir(parents=True)
    (tmp_path / "LICENSE").write_text("Apache License, Version 2.0, January 2004")
    assert Licences(mined).of("m.py", "") == "unknown"
    (tmp_path / "outside" / "repository" / ".git").mkdir()
    assert Licences(mined).of("m.py", "") == "unknown"  # what is above the repository is about something else
    (tmp_path / "outside" / "repository" / "LICENSE").write_text(MIT)
    assert Licences(mined).of("m.py", "") == "MIT"


@pytest.mark.parametrize(
    ("licence", "allowed", "result"),
    [
        ("MIT", ["mit"], True),
        ("MIT OR GPL-3.0", ["MIT"], True),
        ("MIT AND GPL-3.0", ["MIT"], False),
        ("GPL-2.0-or-later", ["GPL-2.0"], True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", ["gpl-2.0"], True),
        ("unknown", ["MIT"], False),
        ("unknown", ["MIT", "unknown"], True),
    ],
)
def test_the_filter_reads_expressions(licence: str, allowed: list[str], result: bool) -> None:
    assert is_allowed(licence, allowed) == result


def test_records_name_their_licence_and_others_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(MIT)
    for n in range(4):
        (tmp_path / f"m{n}.py").write_text(CODE.replace("{n}", str(n)).replace("{header}", APACHE if n % 2 else ""))
    options = MiningOptions(tasks=("write_function",), valid_share=0.0)
    mined = mine(tmp_path, options)
    assert mined.licenses == Counter({"MIT": 2, "Apache-2.0": 2})
    assert {record["license"] for record in mined.tasks["write_function"].train} == {"MIT", "Apache-2.0"}
    mined = mine(tmp_path, MiningOptions(tasks=("write_function",), valid_share=0.0, licenses=("MIT",)))
    assert {record["license"] for record in mined.tasks["write_function"].train} == {"MIT"}
    assert mined.skips["file: not under a licence asked for (Apache-2.0)"] == 2
