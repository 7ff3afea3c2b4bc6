"""What each filter rule drops of some data with its default bounds, and how fast it is: one process, one rule after the other.

    python performance/filter_rules.py data/code_instructions data/chat
    python performance/filter_rules.py data/code_instructions --rules secrets,personal_data --show 5

`judged` counts the records that the rule applies to. Reading is left out of the rates.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mftcoder.cache import cache_root
from mftcoder.config.data import TaskConfig
from mftcoder.curation.example import Example
from mftcoder.curation.filters.config import Filter, FilterConfig
from mftcoder.curation.filters.rules import PRESETS, RULES, Value
from mftcoder.data.records.files import BLOCK_BYTES, find_sources, read_blocks
from mftcoder.data.records.formats import read_record
from mftcoder.reporting.terminal import print_table

TITLES = ("rule", "preset", "judged", "dropped", "of all", "MB/s")


def main() -> None:
    """Read the records, then apply each rule to all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="files or folders of JSONL")
    parser.add_argument("--rules", default=",".join(RULES), help="names of rules; default all")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print the beginning of N dropped records of each rule"
    )
    arguments = parser.parse_args()
    examples = [example for path in arguments.paths for example in read(path)]
    megabytes = sum(len(example.line) for example in examples) / 1e6
    print(f"{len(examples):,} records, {megabytes:.1f} MB")
    rows = []
    for name in arguments.rules.split(","):
        only = Filter(FilterConfig.model_validate([name]))
        judged = sum(value is not None for value in measured(name, examples))  # also loads what the rule needs
        fresh = [Example(example.conversation, example.line) for example in examples]
        started = time.perf_counter()
        drops = only.check_all(fresh)
        rate = megabytes / (time.perf_counter() - started)
        dropped = [example for example, drop in zip(examples, drops, strict=True) if drop]
        presets = ", ".join(preset for preset, names in PRESETS.items() if name in names)
        rows.append(
            [name, presets, f"{judged:,}", f"{len(dropped):,}", f"{len(dropped) / len(examples):.2%}", f"{rate:.0f}"]
        )
        for example in dropped[: arguments.show]:
            print(f"\n--- {name}: {example.conversation.origin}\n{example.question[:500]}\n>>> {example.answer[:1000]}")
    print_table(Console(), TITLES, rows, numbers=TITLES[2:])


def read(path: str) -> list[Example]:
    """The records of a file or folder that can be read."""
    (sources,) = find_sources([TaskConfig(name=Path(path).name, path=path)], cache_root())
    lines = [
        (f"{file.path}:{number}", line)
        for file in sources.training
        for block in read_blocks(file, BLOCK_BYTES)
        for number, line in block.lines()
    ]
    return [Example(read_record(line, format="auto", task="", origin=origin), line) for origin, line in lines]


def measured(name: str, examples: Sequence[Example]) -> Sequence[Value]:
    """The rule's value for each record."""
    rule = RULES[name]
    if rule.measure_all is not None:
        return rule.measure_all(examples)
    assert rule.measure is not None
    values = []
    for example in examples:
        values.append(rule.measure(example))
        example.release()
    return values


if __name__ == "__main__":
    main()
