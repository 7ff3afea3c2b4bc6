"""The published flat MFTCoder JSON config -> the nested config."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Converted:
    """The nested config, and what the reader should be told about it."""

    nested: dict[str, Any]
    warnings: tuple[str, ...] = ()


def is_published(raw: dict[str, Any]) -> bool:
    """Whether the keys are those of the published JSON."""
    return "pretrained_model_path" in raw or "data_paths" in raw


def convert(raw: dict[str, Any], *, origin: str) -> Converted:
    """The same run in our words."""
    return Converted(raw)
