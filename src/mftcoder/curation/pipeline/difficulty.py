"""The step `difficulty` over blocks: the model reads a block after the other in this process; a block that is done is not read again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from mftcoder.curation.example import Drop
from mftcoder.curation.filters.config import DifficultyConfig
from mftcoder.curation.filters.difficulty import AnswerPairs, Scorer, difficulties
from mftcoder.curation.pipeline.blocks import Kept, kept_path, numbered_lines
from mftcoder.curation.pipeline.run import BlockFiles, OnProgress
from mftcoder.curation.pipeline.workers import Workers
from mftcoder.data.records.formats import read_record
from mftcoder.jsonl import atomic_path

_RECORDS = 64
"""Records that are tokenized together: what the model reads is sorted by length among them."""
NOT_JUDGED = "not judged"


class Difficulty:
    """The barrier: drops records whose question helps too little, or too much."""

    def __init__(self, name: str, config: DifficultyConfig, load_scorer: Callable[[DifficultyConfig], Scorer]):
        self.name, self.config, self.load_scorer = name, config, load_scorer

    def decide(
        self, blocks: Sequence[BlockFiles], workers: Workers, on_progress: OnProgress
    ) -> Iterable[Mapping[int, Drop | Kept]]:
        """For each block, what becomes of its records by line number; read from disk when it is asked for."""
        unfinished = [block for block in blocks if not _values_path(block).exists()]
        if unfinished:
            pairs, scorer = AnswerPairs(self.config), self.load_scorer(self.config)
            sizes = [kept_path(block.target).stat().st_size for block in unfinished]
            for index, block in enumerate(unfinished):
                for read in self._score(block, pairs, scorer):
                    on_progress(self.name, sum(sizes[:index]) + read, sum(sizes))
        return (self._decisions(block) for block in blocks)

    def _score(self, block: BlockFiles, pairs: AnswerPairs, scorer: Scorer) -> Iterator[int]:
        """Write `[line number, difficulty]` for each record of a block; yields the bytes that are done."""
        place = block.place
        done = 0
        lines = list(numbered_lines(kept_path(block.target)))
        with atomic_path(_values_path(block)) as temporary, temporary.open("wb") as file:
            for start in range(0, len(lines), _RECORDS):
                part = lines[start : start + _RECORDS]
                records = [read_record(line, format=place.format, task=place.task, origin="") for _, line in part]
                values = difficulties(records, pairs, scorer, self.config.batch_positions)
                for (number, line), value in zip(part, values, strict=True):
                    file.write(orjson.dumps([number, value]) + b"\n")
                    done += len(line)
                yield done

    def _decisions(self, block: BlockFiles) -> dict[int, Drop | Kept]:
        with _values_path(block).open("rb") as file:
            return {number: self._decision(value) for number, value in map(orjson.loads, file)}

    def _decision(self, value: float | None) -> Drop | Kept:
        if value is None:
            return Kept(NOT_JUDGED)
        if not self.config.keeps(value):
            return Drop("difficulty", value)
        return Kept("", {"difficulty": value} if self.config.label else {})


def _values_path(block: BlockFiles) -> Path:
    return block.target.with_suffix(".difficulty")
