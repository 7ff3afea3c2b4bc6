"""Two real ranks, shared by the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.ranks import Ask, two_ranks


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """`ask(function, *arguments)` runs it on both ranks of ddp."""
    with two_ranks("ddp") as ask:
        yield ask
