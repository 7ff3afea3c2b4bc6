"""`mft data stats`: what is counted of records, and how bad input is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mftcoder.app.data import stats as verb
from mftcoder.app.data.stats import StatsOptions, stats
from mftcoder.cli.data.stats import command
from mftcoder.config.load import load_config
from mftcoder.curation.stats.summary import lengths_of
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import ConfigError, DataError
from mftcoder.log import no_progress
from mftcoder.reporting.data_page import render_data


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def chat(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


def counted(*paths: Path, **options: Any) -> dict[str, Any]:
    return stats(paths, StatsOptions(**options), no_progress)


def test_records_roles_turns_languages_and_words_are_counted_for_each_task_and_for_all(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", chat("one two", "three\n```py\nx = 1\n```"), chat("q", "a", "q", "a"))
    b = write(tmp_path / "b.jsonl.gz", {"text": "ä b c"}, {"prompt": "p", "completion": "c"})
    found = counted(a, b)
    first, second = found["sets"]
    assert (first["name"], first["records"], second["name"], second["records"]) == ("a", 2, "b", 2)
    assert first["roles"] == {"assistant": 3, "user": 3}
    assert first["turns"] == {"1": 1, "2": 1}
    assert first["languages"] == {"no fenced code": 1, "python": 1}
    assert first["lengths"]["words"]["sum"] == 2 + 6 + 4
    assert second["bytes"] == len("ä b c".encode()) + 2
    assert found["all"]["records"] == 4
    assert found["all"]["lengths"]["words"] == {
        "sum": 17, "mean": 4.25, "min": 2, "p50": 3, "p90": 8, "p95": 8, "p99": 8, "max": 8,
        "histogram": [[1, 2, 1], [2, 3, 1], [3, 4, 1], [6, 8, 1]],
    }  # fmt: skip


def test_percentiles_are_nearest_ranks() -> None:
    """1 to 200, each once: the 90% of them that are at most 180."""
    found = lengths_of(dict.fromkeys(range(1, 201), 1))
    assert [found[key] for key in ("min", "p50", "p90", "p95", "p99", "max")] == [1, 100, 180, 190, 198, 200]


def test_each_length_is_in_the_bin_that_holds_it_and_four_bins_make_a_doubling() -> None:
    for length in range(2000):
        ((above, up_to, records),) = lengths_of({length: 3})["histogram"]
        assert above < length <= up_to
        assert records == 3
    ends = [end for _, end, _ in lengths_of(dict.fromkeys(range(1, 4097), 1))["histogram"]]
    assert ends[-9:] == [1024, 1217, 1448, 1722, 2048, 2435, 2896, 3444, 4096]


def test_equal_texts_are_counted_inside_a_task_and_between_tasks(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", chat("q", "x y"), chat("q", "x  y"), chat("q", "z"))
    b = write(tmp_path / "b.jsonl", chat("q", "x\ny"), chat("q", "other"))
    found = counted(a, b)
    assert [one["exact_duplicates"] for one in found["sets"]] == [1, 0]
    assert found["all"]["exact_duplicates"] == 2
    assert found["overlap"] == [{"sets": ["a", "b"], "exact": 1, "near": None}]


def test_near_duplicates_are_counted_inside_a_task_and_between_tasks(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    a = write(tmp_path / "a.jsonl", chat("q", words(100)), chat("q", words(100) + " end"), chat("q", words(100, 500)))
    b = write(tmp_path / "b.jsonl", chat("q", words(100, 500) + " end"), chat("q", words(100, 900)))
    found = counted(a, b, near=True)
    assert [one["near_duplicates"] for one in found["sets"]] == [1, 0]
    assert found["all"]["near_duplicates"] == 2
    assert found["overlap"] == [{"sets": ["a", "b"], "exact": 0, "near": 1}]


def test_the_result_does_not_depend_on_blocks_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [chat(f"question {n % 90}", words(n % 37 + 1)) for n in range(400)]
    a = write(tmp_path / "a.jsonl", *records, b"{broken", b"[]")
    whole = counted(a)
    monkeypatch.setattr(verb, "BLOCK_BYTES", 5000)
    assert counted(a, num_proc=1) == whole
    monkeypatch.setattr(verb, "_SMALL_INPUT", 0)
    assert counted(a, num_proc=2) == whole


def test_lines_that_cannot_be_read_are_counted_and_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", chat("q", "a"), b'{"half', b"\xff\xfe", b'{"foreign": 1}', chat("q", "b"))
    found = counted(a)
    assert (found["all"]["records"], found["all"]["unusable"]) == (2, 3)
    assert [problem.split(": ")[0] for problem in found["all"]["problems"]] == [f"{a}:{line}" for line in (2, 3, 4)]


def test_files_without_a_record_that_can_be_read_are_an_error_that_names_them(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", b"{broken")
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*"):
        counted(a)
    with pytest.raises(DataError, match="no such file"):
        counted(tmp_path / "missing")
    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(json.dumps(chat("q", "a")).encode() * 1000)[:-20])
    with pytest.raises(DataError, match=r"b\.jsonl\.gz"):
        counted(broken)


def test_two_paths_of_one_name_and_options_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    a, again = write(tmp_path / "a.jsonl", chat("q", "a")), write(tmp_path / "b" / "a.jsonl", chat("q", "a"))
    with pytest.raises(DataError, match="two paths have the name a"):
        counted(a, again)
    with pytest.raises(ConfigError, match="give --tokenizer"):
        counted(a, max_length=10)


def test_tokens_and_what_max_length_cuts_are_those_of_the_prepared_samples(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    a = write(tmp_path / "a.jsonl", *(chat(f"q{n}", words(5 * n + 1), "again", words(n + 1)) for n in range(40)))
    config = tmp_path / "run.yaml"
    settings = {
        "model": str(tiny_tokenizer_dir),
        "tasks": {"a": str(a)},
        "data": {"max_length": 128, "over_length": "truncate", "val_size": 0},
        "output_dir": str(tmp_path / "run"),
    }
    config.write_text(json.dumps(settings))
    found = counted(config)["all"]
    assert counted(a, tokenizer=str(tiny_tokenizer_dir), max_length=128)["all"] == found
    prepared = prepare(load_config(config)).statistics[0]
    assert found["cut"]["records"] == prepared.truncated > 0
    assert found["lengths"]["trained tokens"]["sum"] - found["cut"]["trained_tokens"] == prepared.trained_tokens
    longer = counted(a, tokenizer=str(tiny_tokenizer_dir), max_length=100_000)["all"]
    assert longer["cut"] == {"records": 0, "tokens": 0, "trained_tokens": 0}
    assert longer["lengths"] == found["lengths"]


def test_documents_of_a_config_are_counted_as_texts_and_nothing_of_them_is_cut(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    a = write(tmp_path / "a.jsonl", {"content": words(300)}, {"text": "x y"})
    config = tmp_path / "run.yaml"
    settings = {
        "model": str(tiny_tokenizer_dir),
        "tasks": {"a": {"path": str(a), "kind": "pretrain"}},
        "data": {"max_length": 64},
        "output_dir": str(tmp_path / "run"),
    }
    config.write_text(json.dumps(settings))
    found = counted(config)["all"]
    assert found["roles"] == {"text": 2}
    assert found["lengths"]["tokens"] == found["lengths"]["trained tokens"]
    assert found["lengths"]["tokens"]["max"] > 300
    assert found["cut"]["records"] == 0


def test_pairs_of_a_preference_task_are_counted_with_both_answers_as_the_prepared_samples(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": words(3 * n + 1), "rejected": words(n + 1, 50)} for n in range(40)]
    a = write(tmp_path / "a.jsonl", *pairs, {"prompt": "q", "chosen": "x"})
    config = tmp_path / "run.yaml"
    settings = {
        "model": str(tiny_tokenizer_dir),
        "tasks": {"a": {"path": str(a), "kind": "dpo"}},
        "data": {"max_length": 160, "val_size": 0, "on_error": "skip"},
        "output_dir": str(tmp_path / "run"),
    }
    config.write_text(json.dumps(settings))
    found = counted(config)["all"]
    assert (found["records"], found["unusable"], found["roles"]) == (40, 1, {"assistant": 80, "user": 40})
    prepared = prepare(load_config(config)).statistics[0]
    assert found["cut"]["records"] == prepared.truncated > 0
    kept = found["lengths"]["tokens"]["sum"] - found["cut"]["tokens"]
    assert kept - 2 * 40 == prepared.tokens  # positions: the last token of each of the two texts is none


def test_a_recipe_names_tasks_and_their_validation_is_a_set_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", chat("q", "a"), chat("q", "b"))
    held_out = write(tmp_path / "v.jsonl", chat("q", "b"))
    recipe = tmp_path / "recipe.yaml"
    tasks = {"chats": {"path": str(tmp_path / "a"), "validation": str(held_out)}}
    recipe.write_text(json.dumps({"tasks": tasks, "steps": ["dedup"], "output_dir": str(tmp_path / "out")}))
    found = counted(recipe)
    assert [(one["name"], one["records"]) for one in found["sets"]] == [("chats", 2), ("chats (validation)", 1)]
    assert found["overlap"] == [{"sets": ["chats", "chats (validation)"], "exact": 1, "near": None}]
    with pytest.raises(ConfigError, match="alone"):
        counted(recipe, held_out)


def test_the_page_has_every_table_and_a_histogram_for_each_set(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", chat("<b>q", "x"), b"{broken")
    b = write(tmp_path / "b.jsonl", chat("<b>q", "x"), chat("q", words(60)))
    pages = render_data(counted(a, b))
    for heading in (
        "Records",
        "Lengths in words",
        "In more than one set",
        "Languages of fenced code",
        "Turns",
        "Roles",
    ):
        assert f"<h2>{heading}</h2>" in pages.html
        assert f"## {heading}" in pages.markdown
    assert pages.html.count("records by their length in words") == 2
    assert "1 lines cannot be read" in pages.html


def test_the_command_prints_tables_within_80_columns_or_json_and_writes_a_page(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *(chat("q", words(n)) for n in range(1, 60)))
    b = write(tmp_path / "b.jsonl", chat("q", words(3)))
    printed = CliRunner().invoke(command, [str(a), str(b)], catch_exceptions=False).stdout
    assert "in more than one set:" in printed
    assert max(map(len, printed.splitlines())) <= 80
    page = tmp_path / "page.html"
    printed = CliRunner().invoke(command, [str(a), str(b), "--json", "--out", str(page)], catch_exceptions=False).stdout
    assert json.loads(printed) == json.loads(page.with_suffix(".json").read_text()) == counted(a, b)
    assert page.with_suffix(".md").exists()


@pytest.mark.parametrize(
    ("counts", "out", "problem"),
    [
        ("a.jsonl", "a.jsonl", "the name of a page ends in .html"),
        ("my.json", "my.html", "my.json would replace what is counted"),
    ],
)
def test_a_page_never_replaces_what_is_counted(counts: str, out: str, problem: str, tmp_path: Path) -> None:
    file = write(tmp_path / counts, chat("q", "a"))
    before = file.read_bytes()
    found = CliRunner().invoke(command, [str(file), "--out", str(tmp_path / out)])
    assert (found.exit_code, problem in found.output, file.read_bytes()) == (2, True, before)
    assert list(tmp_path.iterdir()) == [file]
