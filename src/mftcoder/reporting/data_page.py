"""What is in sets of records -> tables, for a terminal and a page, and histograms of lengths. Takes the summary of `mft data stats`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mftcoder.reporting.charts import SERIES_COLORS, Chart, picture, tick
from mftcoder.reporting.page import Pages, Part, render_parts
from mftcoder.reporting.tables import Table

Summary = Mapping[str, Any]
Bins = Sequence[tuple[int, int, int]]
UNITS = ("words", "tokens", "trained tokens")
_LANGUAGES, _TURNS = 10, 6


def render_data(summary: Summary) -> Pages:
    return render_parts(", ".join(one["name"] for one in summary["sets"]), "Training data", list(_parts(summary)), ())


def _parts(summary: Summary) -> Iterator[Part]:
    yield Part("Records", (*notes(summary), *unusable(summary)), records_table(summary))
    unit = unit_of(summary)
    yield Part(f"Lengths in {unit}", length_notes(summary), lengths_table(summary), length_charts(summary, unit))
    yield Part("What max_length cuts", (), cut_table(summary))
    if len(summary["sets"]) > 1:
        table = overlap_table(summary)
        yield Part("In more than one set", (overlap_note(summary),), table if table.rows else None)
    for title, key, most in (
        ("Languages of fenced code", "languages", _LANGUAGES),
        ("Licences", "licences", _LANGUAGES),
    ):
        yield Part(title, ("Records that have it.",), shares_table(summary, key, most))
    yield Part("Turns", ("Records by their number of answers.",), shares_table(summary, "turns", _TURNS))
    yield Part("Roles", ("Messages.",), shares_table(summary, "roles", _TURNS))


def rows_of(summary: Summary) -> list[Mapping[str, Any]]:
    """The sets, and all of them together if there are several."""
    return [*summary["sets"], *([summary["all"]] if len(summary["sets"]) > 1 else [])]


def unit_of(summary: Summary) -> str:
    """tokens, if they were counted."""
    return "tokens" if summary["tokenizer"] else "words"


def notes(summary: Summary) -> tuple[str, ...]:
    """How tokens were counted."""
    if not summary["tokenizer"]:
        return ("Lengths are in words, split at whitespace; give a tokenizer to count tokens.",)
    template = "its own template" if summary["chat_template"] == "auto" else f"the template {summary['chat_template']}"
    return (f"Tokens of {summary['tokenizer']} in {template}, markers included.",)


def unusable(summary: Summary) -> tuple[str, ...]:
    """The first lines that cannot be read, and how many there are."""
    count = summary["all"]["unusable"]
    shown = tuple(summary["all"]["problems"])
    return (f"{count:,} lines cannot be read and are left out:", *shown) if count else ()


def records_table(summary: Summary) -> Table:
    """Records, their size, and how many repeat another one."""
    units = [unit for unit in UNITS if unit in summary["all"]["lengths"]]
    near = ("near",) if summary["near"] else ()
    rows = [
        (
            one["name"],
            f"{one['records']:,}",
            size(one["bytes"]),
            *(f"{_sum(one, unit):,}" for unit in units),
            f"{one['exact_duplicates']:,}",
            *((f"{one['near_duplicates']:,}",) if near else ()),
        )
        for one in rows_of(summary)
    ]
    return Table(
        ("task", "records", "text", *(unit.removesuffix(" tokens") for unit in units), "repeated", *near), tuple(rows)
    )


def _sum(one: Mapping[str, Any], unit: str) -> int:
    return int(one["lengths"].get(unit, {"sum": 0})["sum"])


def size(count: int) -> str:
    """`12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000  # type: ignore[assignment]
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def lengths_table(summary: Summary) -> Table:
    """Percentiles of the lengths."""
    unit = unit_of(summary)
    keys = ("mean", "min", "p50", "p90", "p95", "p99", "max")
    rows = [
        (one["name"], *(f"{one['lengths'][unit][key]:,.0f}" for key in keys))
        for one in rows_of(summary)
        if unit in one["lengths"]
    ]
    return Table(("task", "mean", "least", "median", "90%", "95%", "99%", "most"), tuple(rows))


def length_notes(summary: Summary) -> tuple[str, ...]:
    """How to read the table and the charts."""
    note = f"90%: so many of the records have at most this many {unit_of(summary)}."
    line = () if summary["max_length"] is None else (f"The dashed line is max_length, {summary['max_length']:,}.",)
    return (note, *line)


def cut_table(summary: Summary) -> Table:
    """What of each set is beyond max_length. No rows without one."""
    rows = []
    for one in rows_of(summary) if summary["max_length"] is not None else ():
        tokens, trained = _sum(one, "tokens"), _sum(one, "trained tokens")
        cut = one["cut"]
        rows.append(
            (
                one["name"],
                _share(cut["records"], one["records"]),
                _share(cut["tokens"], tokens),
                _share(cut["trained_tokens"], trained),
            )
        )
    return Table(("task", "records cut", "tokens lost", "trained tokens lost"), tuple(rows))


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / max(1, whole):.1f}%)"


def overlap_note(summary: Summary) -> str:
    """What is counted, or that there is nothing to count."""
    if not summary["overlap"]:
        return "No two of them have a text in common."
    near = " near: records that are left out if only one of those that are alike is kept." if summary["near"] else ""
    return f"Different texts that both have; whitespace does not count.{near}"


def overlap_table(summary: Summary) -> Table:
    """The pairs of sets with equal or alike records."""
    near = ("near",) if summary["near"] else ()
    rows = [
        (*pair["sets"], f"{pair['exact']:,}", *((f"{pair['near']:,}",) if near else ())) for pair in summary["overlap"]
    ]
    return Table(("task", "and", "equal", *near), tuple(rows), names=2)


def shares_table(summary: Summary, key: str, most: int) -> Table:
    """A row for each of the most frequent names, a column for each set."""
    counts = summary["all"][key]
    shown = list(counts)[:most]
    rows = [(name, *(f"{one[key].get(name, 0):,}" for one in rows_of(summary))) for name in shown]
    if len(counts) > most:
        rest = list(counts)[most:]
        rows.append(
            (f"{len(rest)} others", *(f"{sum(one[key].get(name, 0) for name in rest):,}" for one in rows_of(summary)))
        )
    return Table((key, *(one["name"] for one in rows_of(summary))), tuple(rows))


def length_charts(summary: Summary, unit: str) -> tuple[Chart, ...]:
    """A histogram for each set, all over the same lengths."""
    found = [one for one in summary["sets"] if unit in one["lengths"]]
    bins = [one["lengths"][unit]["histogram"] for one in found]
    between = (min(histogram[0][1] for histogram in bins), max(histogram[-1][1] for histogram in bins))
    return tuple(
        length_chart(one["name"], one["lengths"][unit]["histogram"], unit, between, summary["max_length"])
        for one in found
    )


def length_chart(title: str, histogram: Bins, unit: str, between: tuple[int, int], limit: int | None = None) -> Chart:
    """Bars of `(more than, up to, records)` over the lengths `between`; `limit` is a dashed line."""

    def paint(axes: Axes) -> None:
        starts, ends, counts = zip(*histogram, strict=True)
        widths = [end - start for start, end in zip(starts, ends, strict=True)]
        axes.bar(starts, counts, widths, align="edge", color=SERIES_COLORS[0], alpha=0.75)
        axes.set_xscale("log", base=2)
        axes.set_xlim(max(0.5, between[0] / 2), between[1] * 1.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        if limit is not None:
            axes.axvline(limit, color=SERIES_COLORS[1], linestyle="--", linewidth=1.5)
        axes.set_xlabel(unit)
        axes.set_ylabel("records")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))

    return picture(title, f"{title}: records by their length in {unit}", (), paint)


def tables_for_a_terminal(summary: Summary) -> Sequence[tuple[str, Table]]:
    """The tables with their headings, in the order of the page."""
    unit = unit_of(summary)
    tables = [
        ("", records_table(summary)),
        (f"lengths in {unit}:", lengths_table(summary)),
        ("cut at max_length:", cut_table(summary)),
        ("in more than one set:", overlap_table(summary)),
        ("languages of fenced code:", _all_in_a_line(summary, "languages")),
        ("turns:", _all_in_a_line(summary, "turns")),
        ("roles:", _all_in_a_line(summary, "roles")),
    ]
    return [(heading, table) for heading, table in tables if table.rows]


def _all_in_a_line(summary: Summary, key: str) -> Table:
    """The most frequent names of each set on one line: `python 12, java 3, 4 others`."""
    rows = []
    for one in rows_of(summary):
        counts = list(one[key].items())
        shown = ", ".join(f"{name} {count:,}" for name, count in counts[:3])
        rows.append((one["name"], shown + (f", {len(counts) - 3} others" if len(counts) > 3 else "")))
    return Table(("task", "records"), tuple(rows), names=2)
