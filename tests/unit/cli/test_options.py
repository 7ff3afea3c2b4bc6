"""Values on the command line become what the verbs take, or an error that says what is expected."""

from collections import Counter
from pathlib import Path

import click
import pytest

import mftcoder.cli.options as options
from mftcoder.cli.options import Finite, Names, WholeNumbers

COMMANDS = Path(options.__file__).parent


def test_names_are_separated_by_commas_and_come_once() -> None:
    assert Names().convert(" coba, famo,,coba ", None, None) == ("coba", "famo")


@pytest.mark.parametrize("text", ["", " ", ",", " , "])
def test_a_list_without_a_name_is_an_error(text: str) -> None:
    """The verb would take it for an option that is not given."""
    with pytest.raises(click.BadParameter, match="is empty"):
        Names().convert(text, None, None)


def test_whole_numbers_are_separated_by_commas_and_come_once() -> None:
    assert WholeNumbers().convert("10, 1,10", None, None) == (10, 1)


@pytest.mark.parametrize("text", ["", "x", "1,", "-1", "1.5", "²", "٣", "0", "1" * 5000])
def test_what_is_no_list_of_whole_numbers_is_an_error(text: str) -> None:
    with pytest.raises(click.BadParameter, match="whole numbers from 1"):
        WholeNumbers(1).convert(text, None, None)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e300"])
def test_a_number_must_be_finite(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Finite().convert(text, None, None)


def test_no_option_is_declared_twice() -> None:
    helps = Counter(
        line.strip()
        for path in COMMANDS.rglob("*.py")
        for line in path.read_text(encoding="utf-8").replace("help=", "\nhelp=").splitlines()
        if line.strip().startswith("help=")
    )
    assert helps and [text for text, count in helps.items() if count > 1] == []


def test_a_file_holds_one_command_or_the_methods_of_one() -> None:
    files = [
        path
        for path in COMMANDS.rglob("*.py")
        if path.name not in ("__init__.py", "group.py", "options.py", "console.py")
    ]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    found = {name: text.count('group("') or text.count('command("') for name, text in texts.items()}
    assert set(found.values()) == {1}, found
