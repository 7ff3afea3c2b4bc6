"""How fast is curation, beside other programs, and what do they find? On functions of the Python files installed here.

    python performance/curate.py --peers PYTHON     filters, near-duplicates, renamed copies; PYTHON has rensa and datasketch
    python performance/curate.py --only general     all rules of the preset `general`, in minutes
    python performance/curate.py --only renamed     what `code: renamed` finds of renamed copies, and what it drops besides

Goes in: this machine's Python files, and more folders with --sources. Comes out: tables. After every fiftieth record stands a copy of an
earlier one with a few words changed, so that the Jaccard similarity of the two answers is 0.75 or more; recall is the share of these pairs of which
one is dropped. `MB/s` counts the bytes of the JSONL; `CPU s` is the processor time of all processes, which other work on the machine
changes less. Each contender runs in a process of its own, whose peak memory (with its workers, each at the highest) is shown.

Filters: the plain rules count words, lines and blocks, and look for phrases; the text rules compress and count characters. Near-duplicates: `mft data
dedup` reads JSONL and writes the kept records with a card; the peers only read it and name the duplicates, on one core, as they are. rensa
compares estimates of the similarity and so misses some pairs at our threshold. The fair row is `fair`: with a threshold low enough to find
nearly as many, which also drops records that are less alike, and with the records written.
"""

import argparse
import ast
import json
import random
import re
import resource
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

THRESHOLD, WORDS = 0.7, 5
PLAIN: dict[str, Any] = {
    "question_words": [1, 1000],
    "answer_words": [1, 2000],
    "code_lines": [1, 100],
    **dict.fromkeys(("code_blocks", "words_before_code", "open_fences", "longest_line", "mean_code_line", "generated_notes", "refusals"), True),
}  # fmt: skip
TEXT = dict.fromkeys(("compression_ratio", "repeated_lines", "alphanumeric_share"), True)
SHORT = {
    "plain": "filters: plain rules",
    "text": "filters: plain and text rules",
    "general": "filters: general",
    "duplicates": "near-duplicates: mft",
    "rensa": "near-duplicates: rensa RMinHashDeduplicator",
    "fair": "near-duplicates: rensa at 0.6, writes its result",
    "datasketch": "near-duplicates: datasketch MinHashLSH",
}
STEPS: dict[str, Any] = {
    "filters: plain rules": {"filter": PLAIN},
    "filters: plain and text rules": {"filter": {**PLAIN, **TEXT}},
    "filters: general": {"filter": "general"},
    "near-duplicates: mft": "dedup",
}


def main() -> None:
    """Make the records, run each contender in a process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", default="plain,text,duplicates,rensa,fair,datasketch,renamed", help="a list of these, or general"
    )
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mft-curate"))
    parser.add_argument("--sources", type=Path, action="append", default=[], help="more folders with Python files")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has rensa and datasketch")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run(arguments.contender, arguments)))
        return
    make_records(arguments)
    wanted = arguments.only.split(",")
    contenders = [name for short, name in SHORT.items() if short in wanted]
    if contenders:
        table(arguments, contenders)
    if "renamed" in wanted:
        renamed_copies(arguments)


def table(arguments: argparse.Namespace, contenders: list[str]) -> None:
    """A row a contender."""
    size = data_file(arguments).stat().st_size
    print(f"\n| {arguments.records:,} records, {size / 1e6:.0f} MB | s | MB/s | CPU s | peak GB | dropped | recall |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for name in contenders:
        passed = [
            "--contender",
            name,
            "--records",
            arguments.records,
            "--processes",
            arguments.processes,
            "--work",
            arguments.work,
        ]
        python = arguments.peers if name in PEERS else sys.executable
        done = subprocess.run([python, __file__, *map(str, passed)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {name} | {(done.stderr.strip().splitlines() or ['failed'])[-1]} |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        recall = f"{found['recall']:.4f}" if "duplicates" in name else ""
        rate = size / 1e6 / found["seconds"]
        print(
            f"| {name} | {found['seconds']:.1f} | {rate:.1f} | {found['cpu']:.1f} | {found['gigabytes']:.2f} | {found['dropped']:,} | {recall} |",
            flush=True,
        )


def run(contender: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds, memory, and the dropped lines of one contender."""
    started = time.perf_counter()
    dropped = PEERS[contender](data_file(arguments)) if contender in PEERS else run_ours(contender, arguments)
    seconds = time.perf_counter() - started
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, children = (usage.ru_maxrss for usage in usages)
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    workers = arguments.processes if contender not in PEERS else 0
    gigabytes = (own + workers * children) * 1024 / 1e9
    pairs = [(int(one), int(other)) for one, other in json.loads(pairs_file(arguments).read_text())]
    recall = sum(one in dropped or other in dropped for one, other in pairs) / max(1, len(pairs))
    return {"seconds": seconds, "cpu": cpu, "gigabytes": gigabytes, "dropped": len(dropped), "recall": recall}


def run_ours(contender: str, arguments: argparse.Namespace) -> set[int]:
    """`mft data curate` with one step."""
    from mftcoder.app.data.curate import curate
    from mftcoder.curation.pipeline.recipe import parse_recipe

    output = arguments.work / "out"
    raw = {
        "tasks": {"functions": str(data_file(arguments))},
        "steps": [STEPS[contender]],
        "output_dir": str(output),
        "num_proc": arguments.processes,
        "seed": int(time.time()),  # a finished output would be taken as it is
    }
    made = curate(parse_recipe(raw, origin="performance/curate.py"))
    if not made.manifest["steps"][1]["dropped"]:
        return set()
    lines = (output / "dropped.jsonl").read_text().splitlines()
    return {int(json.loads(line)["origin"].rsplit(":", 1)[1]) for line in lines}


def records_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each record, for the peers."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = json.loads(line)
            yield number, record["prompt"] + "\n" + record["completion"]


def shingles(text: str) -> list[str]:
    """Each run of five words, once."""
    words = re.findall(r"\w+", text)
    return list({" ".join(words[start : start + WORDS]) for start in range(max(1, len(words) - WORDS + 1))})


def run_rensa(path: Path, threshold: float = THRESHOLD) -> set[int]:
    """rensa's own deduplicator."""
    from rensa import RMinHash, RMinHashDeduplicator

    finder = RMinHashDeduplicator(threshold=threshold, num_perm=128, use_lsh=True, num_bands=32, seed=1)
    dropped = set()
    for number, text in records_of(path):
        signature = RMinHash(num_perm=128, seed=1)
        signature.update(shingles(text))
        if not finder.add(str(number), signature):
            dropped.add(number)
    return dropped


def run_rensa_fairly(path: Path) -> set[int]:
    """With a threshold at which it finds nearly as many planted copies; the kept records are written, and so are the dropped ones."""
    dropped = run_rensa(path, 0.6)
    outputs = path.with_suffix(".rensa"), path.with_suffix(".rensa-dropped")
    with path.open("rb") as file, outputs[0].open("wb") as kept, outputs[1].open("wb") as gone:
        for number, line in enumerate(file, start=1):
            (gone if number in dropped else kept).write(line)
    return dropped


def run_datasketch(path: Path) -> set[int]:
    """datasketch's MinHashLSH: a record with a kept candidate is dropped."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    dropped = set()
    for number, text in records_of(path):
        signature = MinHash(num_perm=128, seed=1)
        signature.update_batch([gram.encode() for gram in shingles(text)])
        if index.query(signature):
            dropped.add(number)
        else:
            index.insert(number, signature)
    return dropped


PEERS: dict[str, Callable[[Path], set[int]]] = {
    "near-duplicates: rensa RMinHashDeduplicator": run_rensa,
    "near-duplicates: rensa at 0.6, writes its result": run_rensa_fairly,
    "near-duplicates: datasketch MinHashLSH": run_datasketch,
}


def data_file(arguments: argparse.Namespace) -> Path:
    """The records."""
    return Path(arguments.work) / f"functions-{arguments.records}.jsonl"


def pairs_file(arguments: argparse.Namespace) -> Path:
    """The lines of each planted copy and of its original."""
    return data_file(arguments).with_suffix(".pairs.json")


def make_records(arguments: argparse.Namespace) -> None:
    """Functions of the installed Python files; after every fiftieth stands a copy of an earlier one with some words changed."""
    target = data_file(arguments)
    if target.exists() and pairs_file(arguments).exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = random.Random(0)
    long_ones: list[tuple[int, dict[str, str]]] = []
    pairs, line = [], 0
    with target.open("w") as file:
        for record in functions(arguments.sources):
            if line >= arguments.records:
                break
            line += 1
            file.write(json.dumps(record) + "\n")
            copy = slightly_changed(record, source) if line % 50 == 1 else None
            if copy is not None:
                long_ones.append((line, copy))
            if line % 50 == 0 and long_ones and line < arguments.records:
                original, changed = long_ones.pop(0)
                line += 1
                file.write(json.dumps(changed) + "\n")
                pairs.append((original, line))
    if line < arguments.records:
        raise SystemExit(
            f"only {line:,} functions are installed here: take --records {line}, or more folders with --sources"
        )
    pairs_file(arguments).write_text(json.dumps(pairs))


def functions(more: list[Path]) -> Iterator[dict[str, str]]:
    """A record for each function of the Python files that are installed, as it is written."""
    roots = [Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")] + [Path("/usr/lib/python3"), *more]
    paths = dict.fromkeys(path.resolve() for root in roots for path in sorted(root.rglob("*.py")))
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        lines = text.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                asked = f"Write the function {node.name} of {path.stem}."
                yield {"prompt": asked, "completion": f"```python\n{code}\n```"}


def slightly_changed(record: dict[str, str], source: random.Random) -> dict[str, str] | None:
    """The record with one to three words of its answer replaced; None if the two are less alike than the threshold."""
    parts = re.split(r"(\w+)", record["completion"])
    places = range(3, len(parts), 2)
    for place in source.sample(places, min(len(places), source.randint(1, 3))):
        parts[place] += "x"
    changed = {**record, "completion": "".join(parts)}
    one, other = (set(shingles(side["completion"])) for side in (record, changed))
    return changed if len(one & other) >= (THRESHOLD + 0.05) * len(one | other) else None


def renamed_copies(arguments: argparse.Namespace) -> None:
    """Plant renamed copies among functions; print how many are found, and how the other drops look to another measure."""
    from variants import renamed

    from mftcoder.curation.duplicates.choice import Part, find_duplicates
    from mftcoder.curation.duplicates.config import DedupConfig
    from mftcoder.curation.duplicates.sketches import sketch
    from mftcoder.curation.example import Example
    from mftcoder.data.records.conversation import Conversation, Message

    count = min(10_000, arguments.records)
    codes = []
    for _, text in records_of(data_file(arguments)):
        code = text.partition("```python\n")[2].removesuffix("\n```")
        if len(codes) < count and len(code.split("\n")) >= 4:
            codes.append(code)
    planted = {}
    for number in range(0, len(codes), 20):
        try:
            planted[len(codes) + len(planted)] = (number, renamed(dedented(codes[number]))[0])
        except (SyntaxError, ValueError, RecursionError):
            continue
    texts = [*codes, *(copy for _, copy in planted.values())]
    fenced = [
        (Message("user", "Write it.", False), Message("assistant", f"```python\n{text}\n```", True)) for text in texts
    ]
    examples = [(number, Example(Conversation("", "", turns, ""))) for number, turns in enumerate(fenced)]
    print(
        f"\n| {len(codes):,} functions and {len(planted):,} renamed copies | copies found | others dropped | of these unlike | s |\n|---|---:|---:|---:|---:|"
    )
    for name in ("as_written", "renamed"):
        config = DedupConfig.model_validate({"code": name, "keep": "first"})
        started = time.perf_counter()
        drops = list(find_duplicates([Part(sketch(examples, config), 0, False)], config))
        seconds = time.perf_counter() - started
        found = sum(drop.dropped[1] in planted for drop in drops)
        others = [drop for drop in drops if drop.dropped[1] not in planted]
        unlike = [drop for drop in others if likeness(texts[drop.dropped[1]], texts[drop.kept[1]]) < THRESHOLD]
        print(f"| code: {name} | {found} | {len(others)} | {len(unlike)} | {seconds:.0f} |", flush=True)
        for drop in unlike[:3]:
            print(
                f"  unlike, similarity {drop.similarity:.2f}:\n{texts[drop.dropped[1]]}\n  and\n{texts[drop.kept[1]]}"
            )


def dedented(code: str) -> str:
    """Code that begins in the first column."""
    lines = code.split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines)


def likeness(one: str, other: str) -> float:
    """How alike two codes are without their names: the share of tokens in matching runs, by difflib."""
    import difflib
    import io
    import keyword
    import tokenize

    def blind(code: str) -> list[str]:
        skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        try:
            tokens = [
                token
                for token in tokenize.generate_tokens(io.StringIO(dedented(code)).readline)
                if token.type not in skipped
            ]
        except (tokenize.TokenError, SyntaxError):
            return code.split()
        return [
            "x" if token.type == tokenize.NAME and not keyword.iskeyword(token.string) else token.string
            for token in tokens
        ]

    return difflib.SequenceMatcher(None, blind(one), blind(other), autojunk=False).ratio()


if __name__ == "__main__":
    main()
