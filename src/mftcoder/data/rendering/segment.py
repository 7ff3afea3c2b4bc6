"""Segment: a piece of rendered text that is trained as a whole or not at all."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered conversation; `trained` applies to all of it."""

    text: str
    trained: bool


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """The same text in as few segments as possible: without empty ones, and with neighbours of equal `trained` joined."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].trained == segment.trained:
            merged[-1] = Segment(merged[-1].text + segment.text, segment.trained)
        elif segment.text:
            merged.append(segment)
    return merged
