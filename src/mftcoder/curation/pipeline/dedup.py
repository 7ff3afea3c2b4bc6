"""The step `dedup` over blocks: sketches and the choice in the workers; here is found which records can be alike.

What needs numpy is imported when it is used: numpy starts threads, and a process with threads cannot fork its workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mftcoder.curation.duplicates.config import DedupConfig, minhash_library
from mftcoder.curation.example import Drop
from mftcoder.curation.pipeline.run import BlockFiles, OnProgress
from mftcoder.curation.pipeline.workers import Tools, Workers
from mftcoder.curation.syntax import require_grammars

if TYPE_CHECKING:
    from mftcoder.curation.duplicates.choice import Candidates, Duplicate


@dataclass(frozen=True)
class ChoiceJob:
    """Choose from a group of candidates; `targets` are the blocks whose sketches hold their n-grams."""

    group: "Candidates"
    targets: Sequence[Path]
    threshold: float

    def run(self, steps: Tools) -> "list[Duplicate]":
        from mftcoder.curation.duplicates.choice import choose
        from mftcoder.curation.duplicates.sketches import NgramSets

        sets = {block: NgramSets.load(self.targets[block]) for block in self.group.blocks}
        return list(choose(self.group, sets, self.threshold))


class Dedup:
    """The barrier: drops all but one of the records that are alike."""

    def __init__(self, config: DedupConfig):
        self.config = config
        if config.near:
            minhash_library()
        if config.code == "renamed":
            require_grammars()

    def decide(
        self, blocks: Sequence[BlockFiles], workers: Workers, on_progress: OnProgress
    ) -> Sequence[Mapping[int, Drop]]:
        from mftcoder.curation.duplicates.choice import Part, candidates, groups
        from mftcoder.curation.duplicates.sketches import Sketches

        tasks = {name: number for number, name in enumerate(dict.fromkeys(block.place.task for block in blocks))}
        parts = [
            Part(Sketches.load(block.target), tasks[block.place.task], block.place.split == "validation")
            for block in blocks
        ]
        targets = [block.target for block in blocks]
        found = groups(candidates(parts, self.config))
        jobs = (ChoiceJob(group, targets, self.config.threshold) for group in found)
        decided: list[dict[int, Drop]] = [{} for _ in blocks]
        for duplicate in chain.from_iterable(workers.map(jobs)):
            (block, index), (other, twin) = duplicate.dropped, duplicate.kept
            origin = f"{blocks[other].place.path}:{parts[other].sketches.lines[twin]}"
            rule = "exact_duplicate" if duplicate.is_exact else "near_duplicate"
            drop = Drop(rule, round(duplicate.similarity, 4), {"duplicate_of": origin})
            decided[block][int(parts[block].sketches.lines[index])] = drop
        return decided
