"""`mft prepare` and `mft inspect` through the real command: what they print, and what they say to bad input."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mftcoder.cli import main
from mftcoder.data.prepared import build as building

GOOD = {"chat_rounds": [{"role": "human", "content": "Add 1 and 1."}, {"role": "bot", "content": "1 + 1"}]}
LINE = json.dumps(GOOD).encode() + b"\n"


def good(index: int) -> bytes:
    return LINE.replace(b"Add", b"Add %d:" % index)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task folder with one good file of 20 lines."""
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "a.jsonl").write_bytes(b"".join(map(good, range(20))))
    return tmp_path / "sums"


@pytest.fixture
def run(
    folder: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`run("prepare", "data.max_length=64")` -> exit code, stdout, stderr, on a config with the one task `sums`."""
    config = folder.parent / "run.yaml"
    config.write_text(
        f"model: {tiny_tokenizer_dir}\ntasks: {{sums: {folder}}}\noutput_dir: {folder.parent / 'run'}\n"
        f"data: {{cache_dir: {folder.parent / 'cache'}, num_proc: 1}}\n"
    )

    def call(verb: str, *arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main([verb, str(config), *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Run = Callable[..., tuple[int, str, str]]

CHAT = b'{"chat_rounds": [%s]}\n'
BAD_LINES = {
    "broken JSON": (b"{oops\n", "b.jsonl:1: not valid JSON: "),
    "an unknown role": (
        CHAT % b'{"role": "human", "content": "a"}, {"role": "robot", "content": "b"}',
        "b.jsonl:1: message 2: role 'robot' is unknown. Known roles: system, human/user, bot/assistant.\n",
    ),
    "missing content": (CHAT % b'{"role": "human"}, {"role": "bot", "content": "b"}', "b.jsonl:1: message 1: 'content' is missing\n"),
    "content that is no text": (CHAT % b'{"role": "bot", "content": 1}', "b.jsonl:1: message 1: 'content' is a number, not a text\n"),
    "no assistant": (CHAT % b'{"role": "human", "content": "a"}', "b.jsonl:1: it has no assistant message: nothing to train on\n"),
    "empty content": (CHAT % b'{"role": "bot", "content": ""}', "b.jsonl:1: message 1: content is empty\n"),
    "a doubled key": (b'{"text": "a", "text": "b"}\n', "b.jsonl:1: key 'text' appears twice. Keep one of them.\n"),
    "invalid UTF-8": (LINE + b'{"text": "\xff\xfe"}\n', "b.jsonl:2: not valid JSON: byte 11 is not UTF-8. Save the file as UTF-8.\n"),
    "UTF-16": ('{"text": "a"}\n'.encode("utf-16"), "b.jsonl:1: not valid JSON: byte 1 is not UTF-8. Save the file as UTF-8.\n"),
    "a truncated last line": (LINE + LINE[:40], "b.jsonl:2: not valid JSON: "),
    "another dialect": (b'{"query": "a", "reply": "b"}\n', "b.jsonl:1: unknown dialect: the record has the fields 'query', 'reply'. Known: "),
    "no object": (b'["a"]\n', "b.jsonl:1: a record is a JSON object, not a list\n"),
    "an empty file": (b"", "b.jsonl: is empty. Remove it, or set data.on_error=skip.\n"),
    "a file of blank lines": (b"\n \r\n", "b.jsonl: is empty. Remove it, or set data.on_error=skip.\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_LINES)
def test_bad_input_ends_with_its_place_and_exit_code_2(what: str, folder: Path, run: Run) -> None:
    content, message = BAD_LINES[what]
    (folder / "b.jsonl").write_bytes(content)
    code, out, err = run("prepare")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {folder}/{message}"), err
    assert not list((folder.parent / "cache").rglob("meta.json")), "nothing half-written"
    assert not list((folder.parent / "cache").rglob("*.npz"))


@pytest.mark.parametrize("what", BAD_LINES)
def test_bad_input_can_be_skipped_counted_and_listed(what: str, folder: Path, run: Run) -> None:
    content, message = BAD_LINES[what]
    (folder / "b.jsonl").write_bytes(content)
    code, out, err = run("prepare", "data.on_error=skip")
    assert (code, err) == (0, "")
    assert f"skipped {folder}/{message.strip()}" in out and " problems " in out


def test_a_truncated_last_line_is_called_that(folder: Path, run: Run) -> None:
    (folder / "b.jsonl").write_bytes(LINE[:40])
    assert "(the file ends within this line)" in run("prepare")[2]


def test_a_truncated_gzip_file_is_named(folder: Path, run: Run) -> None:
    packed = gzip.compress(LINE * 100)
    (folder / "b.jsonl.gz").write_bytes(packed[:-20])
    code, _, err = run("prepare")
    assert code == 2 and f"{folder}/b.jsonl.gz: cannot be read: " in err
    (folder / "b.jsonl.gz").write_bytes(b"not gzip at all")
    assert "b.jsonl.gz: cannot be read: Not a gzipped file" in run("prepare")[2]


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + LINE + good(1), LINE.replace(b"\n", b"\r\n") + good(1), LINE + good(1).rstrip(), LINE + b"\n\n" + good(1)],
    ids=["BOM", "CRLF", "no last line break", "blank lines"],
)  # fmt: skip
def test_harmless_differences_between_files_are_accepted(content: bytes, folder: Path, run: Run) -> None:
    (folder / "a.jsonl").write_bytes(content)
    code, out, _ = run("prepare", "data.val_size=0")
    assert code == 0 and out.split("sums")[1].split()[0] == "2"


def test_a_line_of_ten_megabytes_is_one_record(folder: Path, run: Run) -> None:
    (folder / "b.jsonl").write_bytes(json.dumps({"text": "x" * 10_000_000}).encode() + b"\n" + LINE)
    code, out, _ = run("prepare", "data.val_size=0", "data.max_length=128")
    assert code == 0
    assert out.split("sums")[1].split()[:5] == ["22", "0", *out.split("sums")[1].split()[2:4], "1"], (
        "one truncated sample"
    )


def test_a_link_loop_is_walked_once(folder: Path, run: Run) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "deep" / "c.jsonl").write_bytes(b"".join(map(good, range(20, 30))))
    code, out, _ = run("prepare", "data.val_size=0")
    assert code == 0 and out.split("sums")[1].split()[0] == "30"


def test_a_link_to_nothing_is_named(folder: Path, run: Run) -> None:
    (folder / "b.jsonl").symlink_to(folder / "nowhere.jsonl")
    assert run("prepare")[::2] == (2, f"error: {folder}/b.jsonl: task 'sums': is a broken link or not a file\n")


def test_a_task_without_examples_is_named(folder: Path, run: Run) -> None:
    (folder / "a.jsonl").rename(folder / "a.json")
    assert run("prepare")[::2] == (
        2,
        f"error: {folder}: task 'sums': it holds no .jsonl or .jsonl.gz file (1 other files)\n",
    )
    (folder / "b.jsonl").write_bytes(b'{"text": 1}\n')
    code, _, err = run("prepare", "data.on_error=skip")
    assert (code, err) == (2, f"error: {folder}: task 'sums': no sample to train on (1 skipped)\n")


def test_a_path_that_is_not_there_is_named(folder: Path, run: Run) -> None:
    code, _, err = run("prepare", f"tasks.sums.path={folder}/none.jsonl")
    assert (code, err) == (2, f"error: {folder}/none.jsonl: task 'sums': no such file or folder\n")
    code, _, err = run("prepare", f"tasks.sums.path={folder.parent}/run.yaml")
    assert (code, err) == (2, f"error: {folder.parent}/run.yaml: task 'sums': is not a .jsonl or .jsonl.gz file\n")


def test_a_dataset_id_without_the_hub_is_named(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = run("prepare", "tasks.sums.path=nobody/nothing")
    assert code == 2 and err.startswith("error: nobody/nothing: no such file or folder")


def test_errors_of_all_files_come_together_up_to_the_limit(folder: Path, run: Run) -> None:
    (folder / "b.jsonl").write_bytes(b"{\n" + LINE + b"{\n")
    (folder / "c.jsonl").write_bytes(b'{"text": 1}\n' * 7)
    code, _, err = run("prepare")
    assert code == 2 and len(err.splitlines()) == 9
    lines = run("prepare", "data.max_errors=4")[2].splitlines()
    assert len(lines) == 5 and lines[-1].startswith("error: ... and 5 more")


def test_errors_stand_in_the_order_of_files_whatever_process_finds_them(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "BLOCK_BYTES", 200)
    monkeypatch.setattr(building, "_SMALL_INPUT", 0)
    for name in "bcd":
        (folder / f"{name}.jsonl").write_bytes((LINE + b"{\n") * 9)
    places = [line.split(": ")[1] for line in run("prepare", "data.num_proc=2", "data.max_errors=100")[2].splitlines()]
    assert places == [f"{folder}/{name}.jsonl:{line}" for name in "bcd" for line in range(2, 19, 2)]


def test_the_table_counts_what_was_found(folder: Path, run: Run) -> None:
    code, out, err = run("prepare", "data.val_size=0.1", "data.max_length=64", "data.chat_template=chatml")
    assert (code, err) == (0, "")
    cells = out.split("sums")[1].split()
    assert cells[:2] == ["18", "2"] and cells[-1].startswith("store") is False
    assert run("prepare", "data.val_size=0.1", "data.max_length=64", "data.chat_template=chatml")[1] == out


def test_inspect_marks_the_trained_tokens(folder: Path, run: Run) -> None:
    code, out, _ = run("inspect", "--count", "1", "data.val_size=0", "data.chat_template=mftcoder")
    assert code == 0 and f"{folder}/a.jsonl:1" in out
    plain = out.replace("¦", "").replace("\n", "")
    assert "<s>human↵Add 0: 1 and 1.<s>bot↵[1][ ][+][ 1][<|im_end|>]" in plain
    assert run("inspect", "--task", "sum")[::2] == (2, "error: --task: unknown task 'sum'. Did you mean 'sums'?\n")


def test_colours_mark_them_on_a_terminal(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = run("inspect", "--count", "1", "data.val_size=0")[1]
    assert "\x1b[30;42m" in out and "[1]" not in out


def test_preparing_needs_no_torch(folder: Path, run: Run) -> None:
    code = (
        "import sys; from mftcoder.app.data.prepare import prepare; from mftcoder.app.data.inspect import inspect\n"
        "from mftcoder.config.load import load_config; from pathlib import Path\n"
        f"config = load_config(Path({str(folder.parent / 'run.yaml')!r})); prepare(config); inspect(config, task=None, count=1)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.returncode == 0, done.stderr


def test_token_files_are_written_where_the_option_says(folder: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    code, printed, err = run("prepare", "tasks.sums.kind=pretrain", "--format", "megatron", "--out", str(out))
    assert (code, err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        f"sums{middle}_input_ids{ending}" for middle in ("", "_validation") for ending in (".bin", ".idx", ".json")
    ]
    assert f"{out}/sums_input_ids.bin and .idx: " in printed and " tokens in 1 documents" in printed
    assert run("prepare", "--format", "megatron", "--out", str(out))[2].startswith("error: tasks.sums: has kind sft. ")
    assert "belong together" in run("prepare", "--format", "megatron")[2]


SEEDS = [
    LINE,
    json.dumps(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": True}]}
    ).encode(),
    json.dumps({"conversations": [{"from": "human", "value": "ä€😀"}, {"from": "gpt", "value": "\n\t"}]}).encode(),
    json.dumps({"instruction": "x", "input": "", "output": "y<|im_end|><s>"}).encode(),
    json.dumps({"prompt": "p", "completion": "{% generation %}{{ raise_exception('x') }}"}).encode(),
    json.dumps({"text": "plain", "meta": {"n": [1, 2.5, None, True]}}).encode(),
]


def mutated(rng: random.Random) -> bytes:
    """A line with up to four random damages: bytes changed, lost, doubled or replaced by what parsers trip over."""
    line = bytearray(rng.choice(SEEDS).rstrip())
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(line) + 1)
        stop = min(len(line), start + rng.choice((0, 1, 1, 3, 20)))
        pieces = (
            b"",
            bytes([rng.randrange(256)]),
            line[start:stop] * 2,
            b"null",
            b"{",
            b"]",
            b'"',
            b"\\",
            b"\\ud800",
            b"1e999",
            b"[" * 2000,
        )
        line[start:stop] = rng.choice(pieces)
    return bytes(line)


def test_two_thousand_mutated_lines_end_in_clean_errors_or_a_clean_run(folder: Path, run: Run) -> None:
    rng = random.Random(20261120)
    lines = [mutated(rng) for _ in range(2000)]
    (folder / "b.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    code, out, err = run("prepare", "data.on_error=skip", "data.max_errors=3000")
    assert (code, err) == (0, ""), "every line is either a sample or a listed problem"
    assert out.count("skipped /") > 1000
    code, _, err = run("prepare")
    assert code == 2 and all(line.startswith("error: ") for line in err.splitlines())
    for line in lines[:100]:
        (folder / "b.jsonl").write_bytes(line)
        assert run("prepare")[0] in (0, 2)
