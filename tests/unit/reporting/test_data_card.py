"""The data card as a page, of a real curation of a few records."""

import json
import re
from pathlib import Path

import pytest

from mftcoder.app.data.curate import curate
from mftcoder.curation.pipeline.recipe import parse_recipe

LINES = [
    {"prompt": "Write <script>alert(1)</script> & more.", "completion": "```python\nx = 1\n```", "license": "MIT"},
    {"prompt": "Say it\x1b[31m.", "completion": "```python\nx = = 1\n```"},
    {"prompt": "Say it.", "completion": "word " * 3},
    {"prompt": "Say it.", "completion": "word " * 3},
]


@pytest.fixture
def card(tmp_path: Path) -> str:
    for name in ("$a$", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LINES))
    raw = {
        "tasks": {name: str(tmp_path / f"{name}.jsonl") for name in ("$a$", "b")},
        "steps": [{"filter": ["broken_python"]}, {"dedup": {"near": False}}],
        "output_dir": str(tmp_path / "out"),
    }
    curate(parse_recipe(raw, origin="recipe.yaml"))
    curate(parse_recipe({**raw, "seed": 1}, origin="recipe.yaml"))  # takes the place of the older folder, page and all
    return (tmp_path / "out" / "card.html").read_text()


def test_the_page_shows_what_each_step_and_rule_dropped(card: str) -> None:
    assert "Records read: 8, kept: 2 (25.0%)" in card
    rows = re.findall(r"<tr><td>([^<]*: [^<]*)</td><td class=\"number\">([^<]*)</td>", card)
    assert rows == [("1-filter: broken_python", "2"), ("2-dedup: exact_duplicate", "4")]
    assert "records left after each step: 8, 6, 2" in card
    assert "broken_python: Python blocks of the answer that do not parse" in card
    assert "languages of fenced code: no fenced code 1, python 1" in card
    assert "licences, where a record names one: MIT 1" in card


def test_a_card_has_no_empty_section_on_licences(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(LINES[2]) + "\n")
    raw = {
        "tasks": {"a": str(tmp_path / "a.jsonl")},
        "steps": [{"dedup": {"near": False}}],
        "output_dir": str(tmp_path / "out"),
    }
    folder = curate(parse_recipe(raw, origin="recipe.yaml")).folder
    for name in ("card.html", "README.md"):
        text = (folder / name).read_text()
        assert "languages of fenced code" in text
        assert "Licences" not in text


def test_one_sample_is_counted_in_the_singular(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LINES[:2]))
    steps = [{"filter": ["broken_python"]}]
    raw = {"tasks": {"a": str(tmp_path / "a.jsonl")}, "steps": steps, "output_dir": str(tmp_path / "out")}
    curate(parse_recipe(raw, origin="recipe.yaml"))
    card = (tmp_path / "out" / "card.html").read_text()
    assert "<summary>Kept: 1 sample</summary>" in card and "1 samples" not in card
    assert "Records read: 2, kept: 1 (50.0%)" in card and "1 records" not in card


def test_samples_are_shown_as_text_and_never_as_markup(card: str) -> None:
    assert "<summary>Kept: 2 samples</summary>" in card
    assert "<summary>Dropped by 1-filter/broken_python: 2 samples</summary>" in card
    assert "<summary>Dropped by 2-dedup/exact_duplicate: 4 samples</summary>" in card
    assert "<script" not in card
    assert "Write &lt;script&gt;alert(1)&lt;/script&gt; &amp; more." in card
    assert "\x1b" not in card


def test_the_page_stands_alone(card: str) -> None:
    assert not re.search(r"(?:src|href)=\"(?!#)", card)
    assert "How it was made" not in card, "there is no run to tell of"
    assert "output_dir:" in card
