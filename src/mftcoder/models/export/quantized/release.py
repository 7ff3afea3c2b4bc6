"""What a quantized release is: its method, size and losses before and after, as a table, as JSON, and the verdict on it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mftcoder.models.export.quantized.methods import Method
from mftcoder.models.export.quantized.texts import Measured

FILE = "quantization.json"


@dataclass(frozen=True)
class Release:
    """The result of one quantization."""

    folder: Path
    method: Method
    before: Mapping[str, Measured]
    after: Mapping[str, Measured]
    bytes_before: int  # of the weights
    bytes_after: int
    allowed_rise: float
    files: tuple[str, ...]  # with the weights
    types: Mapping[str, int] = field(default_factory=dict)  # how many tensors are held in each type
    settings: Mapping[str, Any] = field(default_factory=dict)
    exams: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # pass@1 before and after

    def problems(self) -> list[str]:
        """Why the release is not whole; empty if it is."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        for task, after in self.after.items():
            before = self.before[task].loss
            if not math.isfinite(after.loss):
                yield f"{task}: its loss is {after.loss} after quantization"
            elif after.loss - before > self.allowed_rise:
                yield (
                    f"{task}: its loss rises from {before:.4f} to {after.loss:.4f}, more than the {self.allowed_rise:g} that a "
                    f"release by {self.method.name} may cost (--max-loss-increase)"
                )

    def table(self) -> str:
        """A Markdown table: what was measured, before and after."""
        rows = ["| | before | after | change |", "|---|---:|---:|---:|"]
        for task, after in self.after.items():
            before = self.before[task]
            change = f"{after.loss - before.loss:+.4f}"
            rows.append(
                f"| loss of {task} ({after.tokens:,} tokens) | {before.loss:.4f} | {after.loss:.4f} | {change} |"
            )
        for exam, (first, second) in self.exams.items():
            rows.append(f"| pass@1 of {exam} | {first:.1%} | {second:.1%} | {100 * (second - first):+.1f} points |")
        share = self.bytes_after / self.bytes_before
        rows.append(f"| weights on disk | {_mb(self.bytes_before)} | {_mb(self.bytes_after)} | {share:.0%} of it |")
        return "\n".join(rows)

    def card(self) -> str:
        """The section of the model card."""
        held = ", ".join(f"{count} {kind}" for kind, count in self.types.items())
        facts = [
            f"Loaded back and measured in float32. Engines that read the format: {', '.join(self.method.engines)}."
        ]
        if held:
            facts.append(f"Tensors: {held}.")
        return "\n\n".join([f"## Quantization: {self.method.name}", self.table(), " ".join(facts)])

    def as_json(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "bits": self.method.bits,
            "engines": list(self.method.engines),
            "files": list(self.files),
            "tensors": dict(self.types),
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "losses": {
                task: {
                    "before": self.before[task].loss,
                    "after": after.loss,
                    "tokens": after.tokens,
                    "texts": after.texts,
                }
                for task, after in self.after.items()
            },
            "pass@1": {exam: {"before": first, "after": second} for exam, (first, second) in self.exams.items()},
            "allowed_rise": self.allowed_rise,
            "settings": dict(self.settings),
        }


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
