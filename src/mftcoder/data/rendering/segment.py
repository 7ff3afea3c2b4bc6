"""Segment: a piece of rendered text that is trained as a whole or not at all. No template, no tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Text of a rendered conversation; `trained` holds for all of it."""

    text: str
    trained: bool


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """The same text in as few segments as possible: empty ones gone, neighbours of equal `trained` joined.

    An assistant turn right behind another trained one stays one segment.
    """
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].trained == segment.trained:
            merged[-1] = Segment(merged[-1].text + segment.text, segment.trained)
        elif segment.text:
            merged.append(segment)
    return merged
