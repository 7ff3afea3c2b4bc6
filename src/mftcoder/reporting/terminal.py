"""Tables of plain text on a terminal: one line per row, also at 80 columns. Long names are listed below the table by a letter."""

import string
from collections.abc import Collection, Iterable, Sequence
from itertools import product

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

Row = Sequence[str]


def print_table(console: Console, titles: Row, rows: Sequence[Row], *, numbers: Collection[str] = ()) -> None:
    """Print the rows, each on one line; `numbers` are the titles whose cells are right-justified.

    A terminal that is too narrow wraps the lines, because a truncated number would be worse.
    """
    gap = "  " if _width(titles, rows, 2) <= console.width else " "
    widths = _widths(titles, rows)
    for row in (titles, *rows):
        cells = []
        for cell, width, title in zip(row, widths, titles, strict=True):
            spaces = " " * (width - cell_len(cell))
            cells.append(spaces + cell if title in numbers else cell + spaces)
        style = "bold" if row is titles else ""
        console.print(gap.join(cells).rstrip(), style=style, highlight=False, markup=False, soft_wrap=True)


def print_table_with_names(
    console: Console, titles: Row, rows: Sequence[Row], name: str, *, numbers: Collection[str] = ()
) -> None:
    """Print the rows. If the names of column `name` do not fit, each row has a letter, and the names are listed below.

    On a terminal that is too narrow for that too, each row is its words, and its numbers below them, each behind its title.
    """
    place = list(titles).index(name)
    if _width(titles, rows, 1) <= console.width:
        print_table(console, titles, rows, numbers=numbers)
        return
    letters = dict(zip(dict.fromkeys(row[place] for row in rows), _letters(), strict=False))
    short = [[*row[:place], letters[row[place]], *row[place + 1 :]] for row in rows]
    if _width(titles, short, 1) > console.width:
        _print_blocks(console, titles, rows, numbers)
        return
    print_table(console, titles, short, numbers=numbers)
    print_list(console, f"{name}s", (f"{letter}  {found}" for found, letter in letters.items()))


def _print_blocks(console: Console, titles: Row, rows: Sequence[Row], numbers: Collection[str]) -> None:
    for row in rows:
        words = [cell or " " for title, cell in zip(titles, row, strict=True) if title not in numbers]
        pairs = [Text(f"{title} {cell}") for title, cell in zip(titles, row, strict=True) if title in numbers]
        console.print(" ".join(words), style="bold", highlight=False, markup=False, soft_wrap=True)
        console.print(Padding(Columns(pairs, padding=(0, 2)), (0, 0, 0, 4)), highlight=False)


def print_list(console: Console, heading: str, lines: Iterable[str]) -> None:
    """A heading and indented lines below it; nothing for no lines."""
    found = [f"  {line}" for line in lines]
    for line in [heading, *found] if found else []:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _widths(titles: Row, rows: Sequence[Row]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]


def _width(titles: Row, rows: Sequence[Row], gap: int) -> int:
    return sum(_widths(titles, rows)) + gap * (len(titles) - 1)


def _letters() -> list[str]:
    """a, b, ..., z, aa, ab, ..., zz."""
    return ["".join(pair) for pair in product(["", *string.ascii_lowercase], string.ascii_lowercase)]
