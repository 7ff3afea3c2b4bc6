"""The demo's bookkeeping: what is done is not done again, what is stale goes, a failure names its command."""

import shlex
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mftcoder.app.demo import (
    Demo,
    Stage,
    config_text,
    dtype_stage,
    exam_table,
    loss_table,
    mining_stage,
    scoring_stages,
    steps_for,
    training_stages,
    verdict,
)
from mftcoder.config.load import load_config
from mftcoder.errors import MftError
from mftcoder.reporting.paired import Change, corrected


def writing(path: Path, text: str = "x", settings: str = "") -> Stage:
    """A stage that adds `text` to a file and prints it."""
    program = f"open({str(path)!r}, 'a').write({text!r}); print({text!r})"
    return Stage(path.name, "", ("-c", program), (path,), settings)


def fresh(out: Path) -> Demo:
    return Demo(out, Console(quiet=True))


def test_a_stage_that_is_done_is_not_run_again_and_says_what_it_said(tmp_path: Path) -> None:
    stage = writing(tmp_path / "demo" / "a")
    (tmp_path / "demo").mkdir()
    outputs = [fresh(tmp_path / "demo").run(stage, capture=True) for _ in range(2)]
    assert outputs == ["x\n", "x\n"]
    assert (tmp_path / "demo" / "a").read_text() == "x"


def test_a_stage_whose_result_is_gone_runs_again(tmp_path: Path) -> None:
    stage = writing(tmp_path / "a")
    fresh(tmp_path / "demo").run(stage)
    stage.owns[0].unlink()
    fresh(tmp_path / "demo").run(stage)
    assert stage.owns[0].read_text() == "x"


@pytest.mark.parametrize("changed", [{"text": "y"}, {"settings": "other"}])
def test_a_changed_stage_starts_anew_and_makes_the_later_ones_stale(tmp_path: Path, changed: dict[str, str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    demo = fresh(tmp_path / "demo")
    demo.run(writing(first))
    demo.run(writing(second))
    demo = fresh(tmp_path / "demo")
    demo.run(writing(first, **changed))
    demo.run(writing(second))
    assert first.read_text() == changed.get("text", "x")
    assert second.read_text() == "x"  # emptied and written again, not added to


def test_a_stage_that_was_cut_short_keeps_what_it_had(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    failing = Stage("a", "", ("-c", f"open({str(kept)!r}, 'a').write('x'); raise SystemExit(3)"), (kept,))
    for _ in range(2):
        with pytest.raises(MftError, match="exit code 3"):
            fresh(tmp_path / "demo").run(failing)
    assert kept.read_text() == "xx"


def test_a_failure_names_the_command_to_type(tmp_path: Path) -> None:
    stage = Stage("wrong", "", ("report", str(tmp_path / "none")))
    with pytest.raises(MftError, match=shlex.join(["mft", "report", str(tmp_path / "none")])):
        fresh(tmp_path / "demo").run(stage)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(MftError, match="holds something else than a demo"):
        fresh(tmp_path)


def test_the_config_it_writes_is_valid_and_points_into_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(config_text(tmp_path, "/models/small", 40, "float32"))
    run = load_config(path)
    model = (run.model.model_name_or_path, run.model.dtype)
    assert (*model, run.train.max_steps, run.output_dir) == ("/models/small", "float32", 40, str(tmp_path / "run"))
    assert run.tasks[0].files == (str(tmp_path / "data" / "complete_function" / "train.jsonl"),)
    assert run.tasks[4].validation == (str(tmp_path / "data" / "write_asserts" / "valid.jsonl"),)


def test_every_task_that_is_trained_is_mined(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(config_text(tmp_path, "/models/small", 40, "float32"))
    mined = mining_stage(tmp_path).command
    tasks = [task.name for task in load_config(tmp_path / "train.yaml").tasks]
    assert tasks == [*mined[mined.index("--tasks") + 1].split(","), "write_asserts"]


def test_commands_can_be_typed_by_hand(tmp_path: Path) -> None:
    train, export = training_stages(tmp_path, "")
    assert train.by_hand == f"mft train {tmp_path}/train.yaml"
    assert export.by_hand == f"mft export {tmp_path}/run {tmp_path}/model --dtype bfloat16"
    answer, score = scoring_stages(tmp_path, "base", "/m")
    assert answer.by_hand.startswith(f"mft generate /m --task exam --data-dir {tmp_path}/exam --limit 80 ")
    assert score.by_hand.startswith(f"mft evaluate {tmp_path}/scores/base/generations_exam-complete_base.json ")


def test_it_trains_in_the_dtype_that_the_machine_computes_fast(tmp_path: Path) -> None:
    dtype = fresh(tmp_path / "demo").run(dtype_stage(), capture=True).strip()
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))), "bf16"
    )
    assert torch.cuda.is_available() or dtype == ("bfloat16" if "bf16" in flags else "float32")
    (tmp_path / "train.yaml").write_text(config_text(tmp_path, "/models/small", 40, dtype))
    assert load_config(tmp_path / "train.yaml").model.dtype == dtype


def test_both_models_sit_the_same_exam(tmp_path: Path) -> None:
    commands = [scoring_stages(tmp_path, name, f"/{name}")[0].by_hand for name in ("base", "tuned")]
    assert commands[0].replace("base", "tuned") == commands[1]


def test_the_time_taken_is_that_of_the_stages_so_far(tmp_path: Path) -> None:
    """Of a demo that goes on: the steps that are trained must not depend on what was done after them."""
    demo = fresh(tmp_path / "demo")
    demo.run(writing(tmp_path / "first"))
    first = demo.seconds()
    demo.run(writing(tmp_path / "second"))
    assert demo.seconds() > first
    again = fresh(tmp_path / "demo")
    again.run(writing(tmp_path / "first"))
    assert again.seconds() == first


@pytest.mark.parametrize(
    ("available", "seconds", "steps"), [(261, 5.4, 48), (261, 1000, 12), (-50, 5.4, 12), (600, 0.01, 60)]
)
def test_steps_fill_the_time_that_is_left(available: float, seconds: float, steps: int) -> None:
    assert steps_for(available, seconds) == steps


def change(task: str, gained: int, lost: int, stayed: int) -> Change:
    passed = [(False, True)] * gained + [(True, False)] * lost + [(True, True)] * stayed
    return Change(task, ("base", "tuned"), tuple(passed), tuple(map(str, range(len(passed)))), (Path(), Path()))


def test_the_outcome_has_a_row_a_task_before_and_after() -> None:
    validation: dict[str, dict[str, float | None]] = {
        "first": {"tests": 2.0, "empty": None},
        "last": {"tests": 1.5, "empty": None},
    }
    table = loss_table(validation)
    assert [list(column.cells) for column in table.columns] == [["tests"], ["2.0000"], ["1.5000"], ["-25.0%"]]
    table = exam_table(corrected([change("exam-write", 9, 1, 30)]))
    assert [list(column.cells) for column in table.columns] == [
        ["exam-write"],
        ["40"],
        ["78%"],
        ["98%"],
        ["+20 (+5 to +33)"],
        ["0.021"],
    ]


def test_it_says_what_changed_and_what_did_not() -> None:
    changes = corrected([change("a", 20, 0, 20), change("b", 2, 1, 20), change("c", 0, 20, 20), change("d", 0, 0, 9)])
    assert verdict(changes).splitlines() == [
        "More solved than chance may give: a.",
        "Fewer solved than chance may give: c.",
        "No change that is more than chance may give: b, d.",
    ]
