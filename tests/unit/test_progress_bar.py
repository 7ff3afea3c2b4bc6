"""The bar shows the title literally, what is done, and a note."""

import io

from rich.console import Console

from mftcoder.progress_bar import progress_bar


def test_the_bar_shows_title_counts_and_note() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with progress_bar("a [b] task", console, total=7, done=2) as update:
        update(5, note="3 pass")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a [b] task" in shown and "5/7" in shown and "3 pass" in shown
