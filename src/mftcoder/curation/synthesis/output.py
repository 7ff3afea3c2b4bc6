"""From drafts to the folder of a synthesis: filtered, without duplicates, with a line for each drop and a manifest with all counts.

    <task>/train.jsonl    the records
    dropped.jsonl         what became no record: task, step, rule, value, origin
    manifest.json         options, prompts, requests with tokens and cost, counts a step and rule, files with checksums
    README.md             the same for a person, with samples
    requests.journal      every request with its answer

The same journal, inputs and options give the same bytes.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder import __version__
from mftcoder.cache import content_hash
from mftcoder.curation.duplicates.choice import Part, find_duplicates
from mftcoder.curation.duplicates.config import DedupConfig, minhash_library
from mftcoder.curation.duplicates.sketches import sketch
from mftcoder.curation.example import Drop, Example
from mftcoder.curation.filters.config import Filter
from mftcoder.curation.synthesis.config import SynthesisConfig
from mftcoder.curation.synthesis.work import Collected, Draft, Dropped
from mftcoder.curation.teacher.budget import cost_of
from mftcoder.curation.teacher.journal import FILE as JOURNAL
from mftcoder.curation.teacher.journal import RequestJournal
from mftcoder.data.records.conversation import Message, make_conversation
from mftcoder.data.records.curated import MANIFEST, files_of
from mftcoder.errors import DataError
from mftcoder.jsonl import write_json, write_jsonl, write_text

CARD, DROPPED = "README.md", "dropped.jsonl"
_SAMPLES = 3
_SHOWN = 1200


@dataclass(frozen=True)
class Synthesized:
    """What was written. `unfinished` says why the synthesis stopped early; empty if it is complete."""

    folder: Path
    manifest: Mapping[str, Any]
    unfinished: str = ""

    def task_lines(self) -> list[str]:
        """The section `tasks` of a run's config that trains on the records; empty without one."""
        lines = [f"  {name}: {self.folder / name}" for name in self.manifest["tasks"]]
        return ["tasks:", *lines] if lines else []


def refuse_foreign_folder(folder: Path) -> None:
    """DataError if `folder` holds files, but no journal of a synthesis."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file. Choose another output directory")
    if folder.is_dir() and not (folder / JOURNAL).is_file() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds files that no synthesis has written. Choose another output directory")


def check_libraries(config: SynthesisConfig) -> None:
    """DataError before the first request if what follows the answers could not be done."""
    if config.filter is not None:
        Filter(config.filter)
    if config.dedup is not None and config.dedup.near:
        minhash_library()


def write_output(
    config: SynthesisConfig,
    steps: Sequence[str],
    collected: Collected,
    journal: RequestJournal,
    prompts: Mapping[str, str],
    unfinished: str,
) -> Synthesized:
    """Check the drafts, and write all files but the journal; the manifest comes last."""
    folder = Path(config.output_dir).expanduser()
    kept, lost = _checked(collected.drafts, config)
    dropped = [*collected.dropped, *lost]
    files = _write_records(folder, kept, dropped)
    manifest = {
        "mftcoder": __version__,
        "method": config.method,
        "complete": not unfinished,
        **({"unfinished": unfinished} if unfinished else {}),
        "recipe": config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"}),
        "prompts": dict(prompts),
        "requests": _requests(config, journal),
        **_counts([*steps, "filter", "dedup"], kept, dropped),
        "files": files,
    }
    write_text(folder / CARD, _card(manifest, kept, dropped))
    write_json(folder / MANIFEST, manifest)
    return Synthesized(folder, manifest, unfinished)


def _checked(drafts: Sequence[Draft], config: SynthesisConfig) -> tuple[list[Draft], list[Dropped]]:
    """The drafts that the filter keeps and that are like no earlier one; and the others."""
    examples = [_example(draft) for draft in drafts]
    problems = Filter(config.filter).check_all(examples) if config.filter is not None else [None] * len(drafts)
    kept = [draft for draft, problem in zip(drafts, problems, strict=True) if problem is None]
    dropped = [
        Dropped(draft.task, "filter", problem, draft.origin)
        for draft, problem in zip(drafts, problems, strict=True)
        if problem is not None
    ]
    twins = _duplicates(kept, config.dedup) if config.dedup is not None else {}
    dropped += [Dropped(kept[number].task, "dedup", twins[number], kept[number].origin) for number in sorted(twins)]
    return [draft for number, draft in enumerate(kept) if number not in twins], dropped


def _duplicates(drafts: Sequence[Draft], config: DedupConfig) -> dict[int, Drop]:
    """Number of a draft -> why it is dropped. Tasks are compared with themselves only: a repaired answer has a question in another one."""
    found = {}
    for task in dict.fromkeys(draft.task for draft in drafts):
        numbers = [number for number, draft in enumerate(drafts) if draft.task == task]
        sketches = sketch([(number, _example(drafts[number])) for number in numbers], config)
        for twin in find_duplicates([Part(sketches, 0, False)], config):
            number, other = (numbers[index] for _, index in (twin.dropped, twin.kept))
            rule = "exact_duplicate" if twin.is_exact else "near_duplicate"
            found[number] = Drop(rule, round(twin.similarity, 4), {"duplicate_of": drafts[other].id})
    return found


def _example(draft: Draft) -> Example:
    turns = [Message("user", draft.question, False), Message("assistant", draft.answer, True)]
    return Example(make_conversation(turns, id=draft.id, task=draft.task, origin=draft.origin))


def _write_records(folder: Path, kept: Sequence[Draft], dropped: Sequence[Dropped]) -> dict[str, dict[str, Any]]:
    """Write the files of records; those of an earlier run that would now be empty go away."""
    records: dict[str, list[dict[str, Any]]] = {}
    for draft in kept:
        records.setdefault(f"{draft.task}/train.jsonl", []).append(draft.as_record())
    if dropped:
        records[DROPPED] = [entry.as_record() for entry in dropped]
    for name in files_of(folder) or ():
        if name.endswith(".jsonl") and name not in records:
            (folder / name).unlink(missing_ok=True)
    files = {}
    for name, lines in records.items():
        count = write_jsonl(folder / name, lines)
        size = (folder / name).stat().st_size
        files[name] = {"records": count, "bytes": size, "sha256": content_hash(folder / name)}
    return files


def _requests(config: SynthesisConfig, journal: RequestJournal) -> dict[str, Any]:
    """By model asked for: attempts, answers, tokens, cost, the names under which the endpoint answered."""
    by_model = {endpoint.model: endpoint for endpoint in config.endpoints}
    found = {}
    for model, totals in sorted(journal.totals.items()):
        endpoint = by_model.get(model)
        found[model] = {
            "attempts": totals.attempts,
            "answers": totals.answers,
            **vars(totals.usage),
            **({"answers_without_usage": totals.unknown_usage} if totals.unknown_usage else {}),
            **(
                {"cost": round(cost_of(endpoint, totals.usage), 6)}
                if endpoint and endpoint.price_in is not None
                else {}
            ),
            "answered_as": dict(sorted(journal.models.get(model, Counter()).items())),
        }
    return {"models": found, "failed_attempts": dict(sorted(journal.problems.items()))}


def _counts(steps: Sequence[str], kept: Sequence[Draft], dropped: Sequence[Dropped]) -> dict[str, Any]:
    left = len(kept) + len(dropped)
    rows: list[dict[str, Any]] = []
    total = left
    for step in dict.fromkeys(steps):
        rules = Counter(entry.drop.rule for entry in dropped if entry.step == step)
        left -= sum(rules.values())
        rows.append({"step": step, "dropped": dict(sorted(rules.items())), "left": left})
    tasks = Counter(draft.task for draft in kept)
    return {
        "read": total,
        "kept": len(kept),
        "steps": rows,
        "tasks": {name: {"format": "auto", "kept": count} for name, count in tasks.items()},
    }


def _card(manifest: Mapping[str, Any], kept: Sequence[Draft], dropped: Sequence[Dropped]) -> str:
    models = manifest["requests"]["models"]
    lines = [
        "# Data card",
        "",
        f"{manifest['kept']:,} records of method `{manifest['method']}`, written by {', '.join(models) or 'no model'}. Made by "
        f"`mft data synthesize` {manifest['mftcoder']}; `manifest.json` has the options and all counts, `dropped.jsonl` what became no record.",
        *(["", f"**Not complete**: {manifest['unfinished']}."] if not manifest["complete"] else []),
        "",
        "| step | dropped | left |",
        "| --- | --- | --- |",
        *(f"| {row['step']} | {_rules(row['dropped'])} | {row['left']:,} |" for row in manifest["steps"]),
        "",
        "| model | requests | answers | tokens of questions | of answers | answered as |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {row['attempts']:,} | {row['answers']:,} | {row['prompt_tokens']:,} | {row['completion_tokens']:,} | "
            f"{', '.join(row['answered_as'])} |"
            for name, row in models.items()
        ),
        "",
        "## Samples",
        "",
    ]
    for draft in kept[:_SAMPLES]:
        lines += [f"`{draft.id}`, from `{draft.origin}`", "", *_quoted(draft.question), ">", *_quoted(draft.answer), ""]
    for entry in dropped[:_SAMPLES]:
        lines += [f"Dropped: `{json.dumps(entry.as_record(), ensure_ascii=False)[:_SHOWN]}`", ""]
    return "\n".join(lines)


def _rules(rules: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in rules.items()) or "nothing"


def _quoted(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text[:_SHOWN].splitlines()]
