"""The data card as a page and as Markdown: the manifest of a curated folder, in the style of the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from matplotlib.axes import Axes

from mftcoder.reporting.charts import INK, SERIES_COLORS, Chart, picture
from mftcoder.reporting.page import Pages, Part, Sample, SampleGroup, render_parts
from mftcoder.reporting.tables import Table

_MOST_BARS = 12
_GRAMS = 20
_SHOWN = 1200
Manifest = Mapping[str, Any]


def card_pages(manifest: Manifest, measures: Mapping[str, str]) -> Pages:
    """The card of a manifest. `measures` says what each rule measures."""
    tasks = ", ".join(manifest["tasks"])
    subtitle = (
        f"Data card. Records read: {manifest['read']:,}, kept: {manifest['kept']:,} ({_share(manifest['kept'], manifest['read'])}). "
        "manifest.json has the recipe and all counts, dropped.jsonl each dropped record with its reason."
    )
    return render_parts(tasks, subtitle, list(_parts(manifest, measures)), ())


def _parts(manifest: Manifest, measures: Mapping[str, str]) -> Iterator[Part]:
    yield Part("Steps", (), _steps_table(manifest), (_flow(manifest),))
    rules = dict.fromkeys(rule for step in manifest["steps"] for rule in step["dropped"])
    meanings = "\n".join(f"{rule}: {measures[rule]}" for rule in rules if rule in measures)
    yield Part("Rules", (), _rules_table(manifest), texts=(("What the rules measure", meanings),) if meanings else ())
    yield Part("Tasks", (), _tasks_table(manifest))
    yield Part("Verdicts", (), _counts_table(manifest["verdicts"], "verdict"))
    yield Part("Notes", tuple(manifest["notes"]))
    advice = "What many unrelated records share is boilerplate: list it under `ignore` of the step, if it is."
    yield Part("Words shared with exams", (advice,), _counts_table(manifest["grams"][:_GRAMS], "gram"))
    note = "Records by characters: up to this many."
    yield Part("Lengths", (note,), _lengths_table(manifest), tuple(_length_charts(manifest)))
    for title, key in (("languages of fenced code", "languages"), ("licences, where a record names one", "licences")):
        if counts := _most(manifest["after"][key]):  # few records name a licence
            rows = tuple((_printable(name), f"{count:,}", _share(count, manifest["kept"])) for name, count in counts)
            yield Part(key.title(), (), Table((title, "records", "of the kept"), rows), (_bars(title, counts),))
    yield Part("Samples", ("Chosen by the seed of the recipe.",), samples=tuple(_sample_groups(manifest)))
    recipe = yaml.safe_dump(manifest["recipe"], sort_keys=False, allow_unicode=True)
    yield Part("Recipe", (f"Fingerprint: {manifest['fingerprint']}.",), texts=(("The recipe in full", recipe),))


def _steps_table(manifest: Manifest) -> Table:
    rows = []
    for step in manifest["steps"]:
        lost, left = sum(step["dropped"].values()), step["left"]
        rows.append((step["step"], f"{lost:,}", f"{left:,}", _share(left, manifest["read"])))
    return Table(("step", "dropped", "left", "of all"), tuple(rows))


def _rules_table(manifest: Manifest) -> Table:
    """A row a rule that dropped something, in the order of the steps."""
    rows = []
    for step in manifest["steps"]:
        for rule, count in sorted(step["dropped"].items(), key=lambda pair: (-pair[1], pair[0])):
            rows.append((f"{step['step']}: {rule}", f"{count:,}", _share(count, manifest["read"])))
    return Table(("step and rule", "dropped", "of all"), tuple(rows))


def _counts_table(found: Sequence[Mapping[str, Any]], what: str) -> Table:
    """Records by what a step has found in them."""
    rows = tuple((row["step"], _printable(row[what]), f"{row['records']:,}") for row in found)
    return Table(("step", what, "records"), rows, names=2)


def _lengths_table(manifest: Manifest) -> Table:
    before, after = manifest["before"]["lengths"], manifest["after"]["lengths"]
    rows = tuple((f"{int(size):,}", f"{after.get(size, 0):,}", f"{count:,}") for size, count in before.items())
    return Table(("characters", "kept", "read"), rows)


def _tasks_table(manifest: Manifest) -> Table:
    rows = []
    for name, task in manifest["tasks"].items():
        held_out = manifest["files"].get(f"validation/{name}.jsonl", {"records": 0})["records"]
        after = task["after"]
        means = (after[key] / max(1, after["records"]) for key in ("question_characters", "answer_characters"))
        rows.append((name, *(f"{value:,.0f}" for value in (task["read"], task["kept"], held_out, *means))))
    columns = ("task", "read", "kept", "of these validation", "characters a question", "characters an answer")
    return Table(columns, tuple(rows))


def _flow(manifest: Manifest) -> Chart:
    """A band as wide as the records that are left, step under step."""
    steps, read = manifest["steps"], max(1, manifest["read"])
    widths = [1.0, *(step["left"] / read for step in steps)]

    def paint(axes: Axes) -> None:
        for row, (step, above, below) in enumerate(zip(steps, widths, widths[1:], strict=False)):
            lost = sum(step["dropped"].values())
            corners = [row, row + 0.72, row + 1]
            axes.fill_betweenx(corners[:2], [0, 0], [above, above], color=SERIES_COLORS[1], alpha=0.7, linewidth=0)
            axes.fill_betweenx(corners, [0, 0, 0], [below, below, below], color=SERIES_COLORS[0], linewidth=0)
            axes.text(-0.03, row + 0.4, step["step"], ha="right", va="center", fontsize=9)
            left = f"{step['left']:,} left"
            axes.text(1.03, row + 0.4, f"{left}\n{lost:,} dropped" if lost else left, va="center", fontsize=8.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(steps), 0)
        axes.axis("off")

    title = "records left after each step"
    return picture(
        title,
        f"{title}: {', '.join(str(step['left']) for step in steps)}",
        ("left", "dropped"),
        paint,
        height=0.5 + 0.45 * len(steps),
    )


def _length_charts(manifest: Manifest) -> Iterator[Chart]:
    yield _histogram("all tasks", manifest["before"]["lengths"], manifest["after"]["lengths"])
    if len(manifest["tasks"]) > 1:
        for name, task in manifest["tasks"].items():
            yield _histogram(name, task["before"]["lengths"], task["after"]["lengths"])


def _histogram(title: str, read: Mapping[str, int], kept: Mapping[str, int]) -> Chart:
    sizes = [str(size) for size in sorted(map(int, {*read, *kept}))]

    def paint(axes: Axes) -> None:
        places = range(len(sizes))
        axes.bar(places, [kept.get(size, 0) for size in sizes], 0.8, color=SERIES_COLORS[0])
        lost = [read.get(size, 0) - kept.get(size, 0) for size in sizes]
        axes.bar(places, lost, 0.8, bottom=[kept.get(size, 0) for size in sizes], color=SERIES_COLORS[1], alpha=0.7)
        axes.set_xticks(places, list(map(_size, sizes)), fontsize=8.5, rotation=45 if len(sizes) > 8 else 0)

    return picture(title, f"{title}: records by characters", ("kept", "dropped"), paint)


def _size(characters: str) -> str:
    """`512`, `4k`, `1M`."""
    number = int(characters)
    return f"{number >> 20}M" if number >= 1 << 20 else f"{number >> 10}k" if number >= 1 << 10 else characters


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The first counts, and the sum of the others."""
    pairs = list(counts.items())[:_MOST_BARS]
    if len(counts) > _MOST_BARS:
        pairs.append((f"{len(counts) - _MOST_BARS} others", sum(list(counts.values())[_MOST_BARS:])))
    return pairs


def _bars(title: str, pairs: Sequence[tuple[str, int]]) -> Chart:
    def paint(axes: Axes) -> None:
        axes.barh(range(len(pairs)), [count for _, count in pairs], 0.7, color=SERIES_COLORS[0])
        axes.set_yticks(range(len(pairs)), [name[:24] for name, _ in pairs])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        for row, (_, count) in enumerate(pairs):
            axes.text(count, row, f" {count:,}", va="center", fontsize=8.5, color=INK)
        axes.margins(x=0.18)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)
        axes.spines.bottom.set_visible(False)

    described = ", ".join(f"{name} {count}" for name, count in pairs)
    return picture(title, f"{title}: {described}", (), paint, height=0.4 + 0.26 * len(pairs))


def _sample_groups(manifest: Manifest) -> Iterator[SampleGroup]:
    kept_first = sorted(manifest["samples"].items(), key=lambda pair: pair[0] != "kept")
    for key, samples in kept_first:
        if samples:
            title = "Kept" if key == "kept" else f"Dropped by {key}"
            count = f"{len(samples)} sample{'s' if len(samples) > 1 else ''}"
            yield SampleGroup(f"{title}: {count}", tuple(map(_sample, samples)))


def _sample(sample: Mapping[str, Any]) -> Sample:
    texts = {name: sample[name] for name in ("question", "answer", "begins") if sample.get(name)}
    facts = {name: value for name, value in sample.items() if name not in ("origin", "question", "answer", "begins")}
    shown = tuple((f"{name}: {_printable(str(value))}") for name, value in facts.items())
    shortened = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..." for text in texts.values())
    return Sample(_printable(sample["origin"]), shown, tuple(_printable(text, keep="\n\t") for text in shortened))


def _printable(text: str, keep: str = "") -> str:
    """Nothing that a browser acts on: no control character, no change of the direction of writing."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
