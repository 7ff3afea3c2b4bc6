"""The data card: what was read, what each step dropped and why, what is in the result, with samples. Markdown, made of the manifest."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mftcoder.curation.filters.rules import RULES, kept_in_words

_BAR = 30
_LANGUAGES = 12
_GRAMS = 20
_SHOWN = 400


def data_card(manifest: Mapping[str, Any]) -> str:
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield "# Data card"
    yield ""
    yield (
        f"{manifest['read']:,} records were read, {manifest['kept']:,} are kept "
        f"({_percent(manifest['kept'], manifest['read'])}). Made by `mft data` {manifest['mftcoder']}; "
        "`manifest.json` has the recipe and all counts, `dropped.jsonl` each dropped record with its reason."
    )
    yield from _section("Steps", _flow(manifest))
    yield from _section("Tasks", _tasks(manifest))
    if manifest["notes"]:
        yield from _section("Notes", [f"- {note}" for note in manifest["notes"]])
    if manifest["verdicts"]:
        yield from _section("Verification", _verdicts(manifest))
    if manifest["grams"]:
        yield from _section("Words shared with exams", _grams(manifest))
    yield from _section("Lengths", _lengths(manifest))
    yield from _section("Languages", _shares("language of a fenced block", manifest["after"]["languages"], manifest))
    if manifest["after"]["licences"]:
        yield from _section(
            "Licences", _shares("licence, where a record names one", manifest["after"]["licences"], manifest)
        )
    yield from _section("Samples", [])
    for key, samples in manifest["samples"].items():
        yield from _samples(key, samples)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def _flow(manifest: Mapping[str, Any]) -> list[str]:
    rows = []
    for step in manifest["steps"]:
        rules = step["dropped"].items()
        shown = "; ".join(f"{rule} {count:,}" for rule, count in sorted(rules, key=lambda pair: -pair[1])) or "nothing"
        rows.append([step["step"], shown, f"{step['left']:,}", _percent(step["left"], manifest["read"])])
    used = dict.fromkeys(rule for step in manifest["steps"] for rule in step["dropped"] if rule in RULES)
    meanings = [f"- `{rule}`: {RULES[rule].measures}{_bounds_of(rule, manifest)}" for rule in used]
    return [*_table(["step", "dropped", "left", "of all"], rows), *(["", *meanings] if meanings else [])]


def _bounds_of(rule: str, manifest: Mapping[str, Any]) -> str:
    found = [step["filter"]["rules"].get(rule) for step in manifest["recipe"]["steps"] if "filter" in step]
    bounds = next((pair for pair in found if pair), None)
    if bounds is None:
        return ""
    return f" (kept: {kept_in_words(bounds)})"


def _tasks(manifest: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, task in manifest["tasks"].items():
        after = task["after"]
        records = max(1, after["records"])
        held_out = manifest["files"].get(f"validation/{name}.jsonl", {"records": 0})["records"]
        rows.append(
            [
                name,
                f"{task['read']:,}",
                f"{task['kept']:,}",
                f"{held_out:,}",
                f"{after['question_characters'] / records:,.0f}",
                f"{after['answer_characters'] / records:,.0f}",
            ]
        )
    titles = ["task", "read", "kept", "of these validation", "characters a question", "characters an answer"]
    return _table(titles, rows)


def _verdicts(manifest: Mapping[str, Any]) -> list[str]:
    rows = [[found["step"], found["verdict"], f"{found['records']:,}"] for found in manifest["verdicts"]]
    return _table(["step", "verdict", "records"], rows)


def _grams(manifest: Mapping[str, Any]) -> list[str]:
    rows = [[found["step"], f"{found['records']:,}", f"`{found['gram']}`"] for found in manifest["grams"][:_GRAMS]]
    advice = "What many unrelated records share is boilerplate: list it under `ignore` of the step, if it is."
    return [*_table(["step", "records", "n-gram"], rows), "", advice]


def _lengths(manifest: Mapping[str, Any]) -> list[str]:
    before, after = manifest["before"]["lengths"], manifest["after"]["lengths"]
    most = max([*before.values(), 1])
    rows = [
        f"{int(size):>12,} {after.get(size, 0):>10,} of {count:>10,} {'█' * round(_BAR * after.get(size, 0) / most)}"
        f"{'░' * (round(_BAR * count / most) - round(_BAR * after.get(size, 0) / most))}"
        for size, count in before.items()
    ]
    return [
        "Records by characters (up to this many), kept and read:",
        "",
        "```",
        *(row.rstrip() for row in rows),
        "```",
    ]


def _shares(title: str, counts: Mapping[str, int], manifest: Mapping[str, Any]) -> list[str]:
    pairs = list(counts.items())
    rows = [[_cell(name), f"{count:,}", _percent(count, manifest["kept"])] for name, count in pairs[:_LANGUAGES]]
    if len(pairs) > _LANGUAGES:
        rest = sum(count for _, count in pairs[_LANGUAGES:])
        rows.append([f"{len(pairs) - _LANGUAGES} others", f"{rest:,}", ""])
    return _table([title, "records", "of the kept"], rows)


def _samples(key: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not samples:
        return
    title = "Kept" if key == "kept" else f"Dropped by {key}"
    yield from (f"<details><summary>{title}: {len(samples)} samples</summary>", "")
    for sample in samples:
        facts = {
            name: value for name, value in sample.items() if name not in ("origin", "question", "answer", "begins")
        }
        shown = ", ".join(f"{name} {_cell(str(value))}" for name, value in facts.items())
        yield f"`{_cell(sample['origin'])}`{f': {shown}' if shown else ''}"
        yield ""
        texts = [sample[name] for name in ("question", "answer", "begins") if sample.get(name)]
        yield from (f"    {line}" for text in texts for line in _shortened(text).split("\n"))
        yield ""
    yield from ("</details>", "")


def _shortened(text: str) -> str:
    """At most so many characters, line ends as one kind, and nothing that a terminal acts on."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in shown)


def _cell(text: str) -> str:
    """A text in a line of Markdown: no bar, no backtick, no line break, no tag."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return clean.replace("|", "/").replace("`", "'").replace("<", "&lt;")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
