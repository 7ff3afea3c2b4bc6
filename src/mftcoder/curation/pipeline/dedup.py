"""The step `dedup` over blocks: sketches in the workers, the choice here."""

from collections.abc import Mapping, Sequence

from mftcoder.curation.duplicates.choice import Part, find_duplicates
from mftcoder.curation.duplicates.sketches import DedupConfig, Sketches, minhash_library
from mftcoder.curation.example import Drop
from mftcoder.curation.pipeline.run import BlockFiles, OnProgress
from mftcoder.curation.pipeline.workers import Workers
from mftcoder.curation.syntax import require_grammars


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
        """For each block, the duplicates by line number."""
        tasks = {name: number for number, name in enumerate(dict.fromkeys(block.place.task for block in blocks))}
        parts = [
            Part(Sketches.load(block.target), tasks[block.place.task], block.place.split == "validation")
            for block in blocks
        ]
        decided: list[dict[int, Drop]] = [{} for _ in blocks]
        for found in find_duplicates(parts, self.config):
            (block, index), (other, twin) = found.dropped, found.kept
            origin = f"{blocks[other].place.path}:{parts[other].sketches.lines[twin]}"
            rule = "exact_duplicate" if found.is_exact else "near_duplicate"
            drop = Drop(rule, round(found.similarity, 4), {"duplicate_of": origin})
            decided[block][int(parts[block].sketches.lines[index])] = drop
        return decided
