"""`mft submit`: a right folder is packed, every kind of wrong one is named, and a zip is judged like its folder."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mftcoder.benchmarks.catalogue import GROUPS, all_tasks
from mftcoder.benchmarks.submission import BASELINE
from mftcoder.cli import cli
from mftcoder.errors import MftError

TASKS = GROUPS["qwen-competition"]
FIRST = f"generations_{TASKS[0]}_m.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A right submission: greedy settings, one answer a problem, no two alike."""
    folder = tmp_path / "generations_m"
    folder.mkdir()
    for task in TASKS:
        answers = [[f"answer {number} to {task}"] for number in range(all_tasks()[task].problems)]
        (folder / f"generations_{task}_m.json").write_text(json.dumps(answers))
        (folder / f"settings_{task}_m.json").write_text(json.dumps({"sampling": {"temperature": 0.0}}))
    return folder


def submit(*arguments: object) -> tuple[str, list[str]]:
    """What the command printed, and the problems it ended with."""
    done = CliRunner().invoke(cli, ["submit", *map(str, arguments)])
    problems = list(done.exception.problems) if isinstance(done.exception, MftError) else []
    assert done.exception is None or problems, done.output + repr(done.exception)
    return done.output, problems


def rewrite(name: str, change: Callable[[list], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


def test_the_group_is_thirteen_tasks_of_2468_problems():
    assert len(TASKS) == 13
    assert sum(all_tasks()[task].problems for task in TASKS) == 2468
    assert set(BASELINE) == set(TASKS)
    assert sum(BASELINE.values()) / 13 == pytest.approx(0.0933, abs=5e-5)


def test_a_right_folder_becomes_a_zip_that_unpacks_to_it(folder: Path, tmp_path: Path):
    output, problems = submit(folder)
    assert not problems
    with zipfile.ZipFile(tmp_path / "generations_m.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"generations_m/generations_{task}_m.json" for task in TASKS)
        assert archive.read(f"generations_m/{FIRST}") == (folder / FIRST).read_bytes()
    assert "warning" not in output
    assert submit("--check", tmp_path / "generations_m.zip")[1] == []


def test_the_same_answers_give_the_same_zip(folder: Path, tmp_path: Path):
    submit(folder)
    first = (tmp_path / "generations_m.zip").read_bytes()
    for path in folder.iterdir():
        path.touch()
    submit(folder)
    assert (tmp_path / "generations_m.zip").read_bytes() == first


def test_scores_and_their_mean_stand_beside_the_baseline(folder: Path, tmp_path: Path):
    for number, task in enumerate(TASKS):
        record = {"scores": {"pass@1": {"value": number / 100}}}
        (folder / f"metrics_{task}_m.json").write_text(json.dumps(record))
    output, _ = submit(folder)
    assert (
        "0.1200" in output and "0.0600" in output and "0.0933" in output
    )  # the last, the mean of 0 .. 12, the baseline's


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (lambda folder: (folder / FIRST).unlink(), f"{FIRST}: is missing"),
    "a file of another model": (
        lambda folder: (folder / FIRST).rename(folder / f"generations_{TASKS[0]}_other.json"),
        f"generations_{TASKS[0]}_other.json: is not one of the 13 files",
    ),
    "a file too many": (
        lambda folder: (folder / "generations_humaneval_m.json").write_text("[]"),
        "is not one of the 13 files",
    ),
    "a folder in place of a file": (
        lambda folder: ((folder / FIRST).unlink(), (folder / FIRST).mkdir()),
        f"{FIRST}: is not a file",
    ),
    "no JSON": (lambda folder: (folder / FIRST).write_text("[["), f"{FIRST}: not valid JSON"),
    "not UTF-8": (lambda folder: (folder / FIRST).write_bytes(b'[["\xff"]]'), f"{FIRST}: not UTF-8"),
    "an object": (lambda folder: (folder / FIRST).write_text("{}"), "expected a JSON list, found an object"),
    "too few problems": (rewrite(FIRST, lambda answers: answers[:-1]), "163 problems, but the benchmark has 164"),
    "too many problems": (rewrite(FIRST, lambda answers: [*answers, ["x"]]), "165 problems, but the benchmark has 164"),
    "two samples": (
        rewrite(FIRST, lambda answers: [["a", "b"], *answers[1:]]),
        "problem 0: 2 samples; exactly 1 is allowed",
    ),
    "no sample": (rewrite(FIRST, lambda answers: [[], *answers[1:]]), "problem 0: no sample"),
    "a text for a list": (
        rewrite(FIRST, lambda answers: ["a", *answers[1:]]),
        "problem 0: expected a list of samples, found a string",
    ),
    "a number for a text": (
        rewrite(FIRST, lambda answers: [[1], *answers[1:]]),
        "problem 0, sample 0: expected a string, found a number",
    ),
    "null for a text": (
        rewrite(FIRST, lambda answers: [[None], *answers[1:]]),
        "problem 0, sample 0: expected a string, found null",
    ),
    "not greedy": (
        lambda folder: (folder / f"settings_{TASKS[0]}_m.json").write_text('{"sampling": {"temperature": 0.8}}'),
        "temperature is 0.8; the contest requires greedy decoding (0)",
    ),
    "settings without sampling": (
        lambda folder: (folder / f"settings_{TASKS[0]}_m.json").write_text('{"sampling": [0]}'),
        "temperature is not recorded",
    ),
    "settings beyond reading": (
        lambda folder: (folder / f"settings_{TASKS[0]}_m.json").write_text("[" * 100_000),
        "temperature is unreadable",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_each_kind_of_wrong_folder_is_named_and_not_packed(folder: Path, tmp_path: Path, kind: str):
    change, message = WRONG[kind]
    change(folder)
    _, problems = submit(folder)
    assert any(message in problem for problem in problems), problems
    assert not (tmp_path / "generations_m.zip").exists()


def test_all_that_is_wrong_is_named_at_once(folder: Path):
    (folder / FIRST).unlink()
    (folder / "generations_mbpp_m.json").write_text("{}")
    assert len(submit(folder)[1]) == 2


def test_the_folders_name_must_be_the_models(folder: Path):
    wrong = folder.rename(folder.with_name("my answers"))
    assert "must be named generations_MODEL" in submit(wrong)[1][0]


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (rewrite(FIRST, lambda answers: [[" "], *answers[1:]]), "1 of 164 answers are empty"),
        (rewrite(FIRST, lambda answers: [["same"], ["same"], *answers[2:]]), "2 answers are identical: 'same'"),
        (rewrite(FIRST, lambda answers: [[""]] * 164), "164 of 164 answers are empty"),
        (
            rewrite(FIRST, lambda answers: [*answers[:3], ["\ud800"], *answers[4:]]),
            "problem 3: the answer contains half a",
        ),
        (
            lambda folder: (folder / f"settings_{TASKS[0]}_m.json").unlink(),
            "so greedy decoding cannot be checked",
        ),
    ],
)
def test_what_is_odd_is_a_warning(folder: Path, tmp_path: Path, change: Callable, warning: str):
    change(folder)
    output, problems = submit(folder)
    assert warning in output and not problems
    assert (tmp_path / "generations_m.zip").exists()


def repack(folder: Path, path: Path, rename: Callable[[str], str | None] = lambda name: name) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.glob("generations_*")):
            if name := rename(f"generations_m/{file.name}"):
                archive.write(file, name)
    return path


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: name.removeprefix("generations_m/"),
            "must contain one folder generations_MODEL; these files are outside of it",
        ),
        (
            lambda name: name.replace("generations_m/", "__MACOSX/") if "mbpp" in name else name,
            "outside of it: __MACOSX/",
        ),
        (lambda name: f"x/{name}", "must contain one folder"),
        (lambda name: f"../{name}", "must contain one folder"),
        (lambda name: name.replace("generations_m/", "answers/"), "must be named generations_MODEL"),
        (lambda name: None if "mbpp" in name else name, "generations_mbpp_m.json: is missing"),
        (lambda name: name.replace("mbpp", "mbpq"), "is not one of the 13 files"),
    ],
)
def test_each_kind_of_wrong_zip_is_named(folder: Path, tmp_path: Path, rename: Callable, message: str):
    problems = submit("--check", repack(folder, tmp_path / "generations_m.zip", rename))[1]
    assert any(message in problem for problem in problems), problems


def test_a_zip_may_have_any_name(folder: Path, tmp_path: Path):
    output, problems = submit("--check", repack(folder, tmp_path / "my answers, second try.zip"))
    assert "would be accepted" in output and not problems


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_damaged_on_its_way_is_named(folder: Path, tmp_path: Path, method: int):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.glob("generations_*")):
            archive.write(file, f"generations_m/{file.name}")
    content = bytearray(path.read_bytes())
    content[150:200] = bytes(byte ^ 0x5A for byte in content[150:200])
    path.write_bytes(content)
    assert "not a zip that can be read" in submit("--check", path)[1][0]


def test_a_file_that_unpacks_to_hundreds_of_megabytes_is_not_read(folder: Path, tmp_path: Path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.glob("generations_*")):
            archive.write(file, f"generations_m/{file.name}")
    content = bytearray(path.read_bytes())
    size_in_directory = content.index(b"PK\x01\x02") + 24  # of its first file
    content[size_in_directory : size_in_directory + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    problems = submit("--check", path)[1]
    assert len(problems) == 1
    assert problems[0].endswith("_m.json: is larger than 256 MiB")


def test_a_zip_of_another_kind_is_named(folder: Path, tmp_path: Path):
    broken = tmp_path / "generations_m.zip"
    broken.write_bytes(b"PK\x03\x04 no zip")
    assert "not a zip that can be read" in submit("--check", broken)[1][0]
    assert "no such file" in submit("--check", tmp_path / "missing.zip")[1][0]
    assert "no such folder" in submit(tmp_path / "missing")[1][0]
