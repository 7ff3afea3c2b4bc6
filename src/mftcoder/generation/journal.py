"""The journal of a generation: each completion is written when it is ready, so that a killed run can continue. Torch-free.

`completions_{task}_{model}.jsonl` has a line of settings, then one line per sample with the raw text, the answer in it, and why it
ended. It is used only for the same settings; a line truncated by a crash is generated again. With several processes, each except the
first writes its own file, `...rank1.jsonl`, and the first merges them at the end.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mftcoder.errors import DataError, GenerationError
from mftcoder.generation.engine import Completion
from mftcoder.jsonl import JournalFile, has_settings, read_journal, read_jsonl
from mftcoder.log import say

SHOWN = 30
"""Most characters of a setting that a line shows."""
Key = tuple[str, int]  # problem, sample


class GenerationJournal:
    """The journal file of one process; a context manager. `answers` are those that all processes had when it was opened."""

    def __init__(self, path: Path, settings: Mapping[str, Any], rank: int = 0):
        self.path = path.with_suffix(f".rank{rank}.jsonl") if rank else path
        self._others = path.with_suffix("").name + ".rank*.jsonl"
        self._file = JournalFile(self.path, settings, GenerationError)
        if not rank:
            _tell_other_settings(path, settings)
        records = self._file.records
        self.answers = _answers(records)
        for other in self._other_files():
            self.answers |= _answers(read_journal(other, settings))
        if rank:
            self.answers |= _answers(read_journal(path, settings))
        self._file.rewrite(records)  # without an incomplete last line

    def __enter__(self) -> "GenerationJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, completion: Completion, answer: str) -> None:
        """Append one sample; it is in the file when this returns."""
        prompt = completion.prompt
        self._file.append(
            {
                "problem_id": prompt.problem_id,
                "sample": prompt.sample,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "tokens": completion.tokens,
                "answer": answer,
            }
        )
        self.answers[prompt.problem_id, prompt.sample] = answer

    def merge_others(self) -> None:
        """Move the lines of the other processes into the first one's journal, after all of them are done."""
        settings = self._file.settings
        theirs = [other for other in self._other_files() if has_settings(other, settings)]
        records = [record for path in (self.path, *theirs) for record in read_journal(path, settings)]
        by_sample = {(record["problem_id"], record["sample"]): record for record in records}
        self._file.rewrite(by_sample.values())
        self.answers = _answers(list(by_sample.values()))
        for other in theirs:
            other.unlink()

    def _other_files(self) -> list[Path]:
        return [path for path in sorted(self.path.parent.glob(self._others)) if path != self.path]


def _tell_other_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Log that samples of other settings are dropped, and which settings differ."""
    lines: list[Any] = []
    with suppress(DataError):  # an incomplete last line
        lines.extend(line for _, line in read_jsonl(path))
    written = lines[0].get("settings") if lines and isinstance(lines[0], dict) else None
    if not isinstance(written, dict) or len(lines) == 1 or written == settings:
        return
    before, now = _flat(written), _flat(settings)
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    changes = ", ".join(_change(name, before.get(name), now.get(name)) for name in names)
    say(f"{path}: its {len(lines) - 1:,} samples have other settings and are written anew: {changes}")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, **settings.get("sampling", {}), "sampling": None}


def _change(name: str, before: Any, now: Any) -> str:
    short = all(len(str(value)) <= SHOWN for value in (before, now))  # no hashes, no templates
    return f"{name} {before} -> {now}" if short else name


def _answers(records: list[dict[str, Any]]) -> dict[Key, str]:
    return {(record["problem_id"], record["sample"]): record["answer"] for record in records}


def read_completions(path: Path) -> list[dict[str, Any]]:
    """The records of a finished journal, whatever its settings: problem_id, sample, text, finish_reason, tokens, answer."""
    return [record for _, record in read_jsonl(path)][1:]
