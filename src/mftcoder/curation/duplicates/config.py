"""The options of the step `dedup`. They stand apart from sketches.py so that a recipe is read, and blocks are filtered, without numpy."""

from typing import Any, Literal

from pydantic import Field

from mftcoder.config.section import Section
from mftcoder.errors import DataError

LEAST_THRESHOLD = 0.6


class DedupConfig(Section):
    """Options of the step `dedup`."""

    near: bool = True
    """Drop near-duplicates too, not only exact ones."""
    threshold: float = Field(default=0.7, ge=LEAST_THRESHOLD, le=1)
    """Jaccard similarity of two records from which on they are near-duplicates."""
    ngram: int = Field(default=5, ge=1, le=50)
    """Words of an n-gram."""
    on: Literal["conversation", "question", "answer"] = "conversation"
    """What is compared."""
    code: Literal["as_written", "renamed"] = "as_written"
    """renamed: code is compared without its names, comments and layout."""
    keep: Literal["longest", "first"] = "longest"
    """Which record is kept: the one with the longest answer, or the first one. Validation comes before training."""
    within: Literal["all", "task"] = "all"
    """Compare the records of all tasks, or only those of the same task."""


def minhash_library() -> Any:
    """rensa; DataError if it is not installed."""
    try:
        import rensa
    except ImportError as error:
        raise DataError(
            "dedup: near-duplicates need rensa, which is not installed. Install it with: pip install 'mftcoder[curate]', or set near: false"
        ) from error
    return rensa
