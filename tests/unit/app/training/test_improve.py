"""`mft improve` before and between its stages: mistakes are named first, a finished stage is not repeated, a failed sandbox ends it."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mftcoder import stages as module
from mftcoder.app.training.improve import check_options, improve
from mftcoder.app.training.rounds import ImproveOptions, Rounds, training_config
from mftcoder.benchmarks.practice import Problems, policy_round_of
from mftcoder.benchmarks.rewards import Groups
from mftcoder.config.effects import Run, fields_without_effect
from mftcoder.config.kinds import GrpoKind
from mftcoder.errors import BenchmarkError, ConfigError, MftError, UnjudgedError
from mftcoder.jsonl import read_json, write_jsonl
from mftcoder.stages import Stages
from tests.unit.benchmarks.test_practice import problem, written


def options(tmp_path: Path, **given: Any) -> ImproveOptions:
    return ImproveOptions(**{"exam": tmp_path, "out": tmp_path / "out", "train_share": 0.5, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_share": None}, "give either --train FILE, with practice problems, or --train-share SHARE"),
        ({"train": Path("x")}, "a model must not train on the problems that it is scored on"),
        ({"kinds": ("write", "guess")}, "--kinds: unknown: guess. Known: complete, write, repair, test"),
        ({"temperature": 0.0}, "--samples above 1 needs a --temperature above 0"),
        (
            {"samples": 1, "temperature": 0.0, "score_samples": 4},
            "--score-samples above 1 needs a --temperature above 0",
        ),
        ({"method": "dpo"}, "--method dpo: unknown. Known: rft, grpo"),
        ({"method": "grpo", "samples": 1}, "--samples: a group of one answer has no advantage"),
        ({"method": "grpo", "keep": 3}, "--keep: has no effect with --method grpo"),
        ({"updates": 2, "grpo": ("beta=1",)}, "--updates, --grpo: has no effect with --method rft"),
        ({"method": "grpo", "reward": "test=1"}, "--reward: unknown part 'test'"),
        ({"overrides": ("output_dir=x",)}, "output_dir=x: `mft improve` sets this itself"),
        ({"overrides": ("model=x",)}, "model=x: `mft improve` sets this itself"),
        ({"method": "grpo", "updates": 2, "grpo": ("name=dpo",)}, "--grpo: name: the kind is grpo. Leave it out"),
        ({"method": "grpo", "overrides": ("train.max_steps=1",)}, "train.max_steps=1: `mft improve` sets this itself"),
        ({"method": "grpo", "overrides": ("train.num_train_epochs=2",)}, "`mft improve` sets this itself"),
        ({"method": "grpo", "overrides": ("train.gradient_accumulation_steps=1",)}, "`mft improve` sets this itself"),
        ({"method": "grpo", "overrides": ("train.resume_from_checkpoint=false",)}, "`mft improve` sets this itself"),
    ],
)
def test_a_mistake_in_the_options_is_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        check_options("model", options(tmp_path, **given))


def test_a_run_folder_is_refused_with_the_command_that_exports_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"Export it first: mft export {tmp_path}/run FOLDER"):
        check_options(str(tmp_path / "run"), options(tmp_path))


def test_overrides_reach_the_config_of_a_round(tmp_path: Path) -> None:
    config = training_config(
        "m", options(tmp_path, overrides=("train.learning_rate=0.5", "model.dtype=float32")), ["write"], 2
    )
    assert (config.train.learning_rate, config.model.dtype, config.task_names) == (0.5, "float32", ("write",))
    assert config.tasks[0].files == (str(tmp_path / "out" / "round-2" / "data" / "write" / "train.jsonl"),)
    assert config.adapter.type == "lora"


def test_a_wrong_override_is_named_before_anything_is_written(tmp_path: Path) -> None:
    written(tmp_path, [problem("f", "a.py"), problem("g", "b.py")])
    with pytest.raises(ConfigError, match=r"train\.learning_rat"):
        improve("m", options(tmp_path, overrides=("train.learning_rat=1",)))
    assert not (tmp_path / "out").exists()


def test_the_rounds_of_grpo_share_a_run_and_clip_only_where_they_are_off_policy(tmp_path: Path) -> None:
    for updates, given, epsilon in ((1, (), None), (2, (), 0.2), (1, ("epsilon=0.3",), 0.3)):
        chosen = options(tmp_path, method="grpo", updates=updates, grpo=(*given, "beta=0.04"))
        config = training_config("m", chosen, ["practice"], 3, split=5)
        kind = config.tasks[0].kind
        assert isinstance(kind, GrpoKind) and (kind.epsilon, kind.beta) == (epsilon, 0.04)
        assert (config.output_dir, config.train.gradient_accumulation_steps) == (str(tmp_path / "out" / "run"), 5)
        assert (config.train.num_train_epochs, config.train.lr_scheduler_type) == (1, "constant")
        assert config.data.on_error == "skip"  # an answer that does not fit into a row ends no run of many rounds
        assert not [line for line in fields_without_effect(Run(config)) if line.startswith("data.")]


def test_a_wrong_option_of_the_kind_is_named_before_anything_is_sampled(tmp_path: Path) -> None:
    written(tmp_path, [problem("f", "a.py"), problem("g", "b.py")])
    with pytest.raises(ConfigError, match=r"tasks\.practice\.kind.*clip"):
        improve("m", options(tmp_path, method="grpo", grpo=("clip=0.2",)))


def test_a_group_with_an_answer_longer_than_a_row_is_left_out_and_counted(
    tmp_path: Path, tiny_tokenizer_dir: Path, said: Callable[[], str]
) -> None:
    """The other group is trained: a round that sampled for hours does not end there."""
    chosen = options(tmp_path, method="grpo", overrides=("data.max_length=64",))
    marks = {"rewards": [1, 0], "trained": [True, True]}
    groups: list[dict[str, Any]] = [{"prompt": "q", "completions": ["a", one], **marks} for one in ("b", "long " * 80)]
    write_jsonl(tmp_path / "out" / "round-1" / "data" / "practice" / "train.jsonl", groups)
    stages = Stages(tmp_path / "stages", {})
    stages.close()
    rounds = Rounds(str(tiny_tokenizer_dir), chosen, Problems((), ()), stages, {})
    metrics = [{"problems": [{"passed": 1}, {"passed": 0}]}]
    rounds.found.rounds.append(policy_round_of(1, metrics, Groups(groups, 0, 0, 0.5), 2))
    assert rounds.rows_of(training_config(rounds.model, chosen, ["practice"], 1), 1) == 1
    assert "round 1: 1 groups left out" in said()
    (entry,) = read_json(tmp_path / "out" / "improve.json")["rounds"]
    assert entry["left_out"] == {"equal": 0, "cut": 0, "long": 1} and entry["kept"] == 2


def test_an_option_of_the_kind_without_effect_is_refused(tmp_path: Path) -> None:
    """One update on fresh answers has no ratio to clip."""
    written(tmp_path, [problem("f", "a.py"), problem("g", "b.py")])
    with pytest.raises(ConfigError, match=r"--grpo: epsilon_high: 0.3 has no effect: kind.epsilon is null"):
        improve("m", options(tmp_path, method="grpo", grpo=("epsilon_high=0.3",)))


def test_a_model_that_is_not_there_is_named_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such model folder"):
        check_options(str(tmp_path / "nowhere"), options(tmp_path))


def test_another_model_at_the_same_place_does_not_go_on_with_the_answers_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, [problem("f", "a.py"), problem("g", "b.py")])
    monkeypatch.setattr(module, "run_python", Processes(2))
    model = tmp_path / "model"
    model.mkdir()
    for content, message in (("one", "ended with exit code 2"), ("two", "made with another content of the model")):
        (model / "config.json").write_text(content)
        with pytest.raises(MftError, match=message):
            improve(str(model), options(tmp_path))


class Processes:
    """In the place of `run_python`: notes the commands, and ends them with the given code."""

    def __init__(self, code: int = 0):
        self.commands: list[str] = []
        self.words: list[str] = []
        self.code = code

    def __call__(self, arguments: list[str], **_: Any) -> tuple[int, str]:
        self.commands.append(arguments[2])
        self.words += arguments
        return self.code, ""


def test_a_finished_stage_does_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    monkeypatch.setattr(module, "run_python", processes)
    for _ in range(2):
        stages = Stages(tmp_path / "out", {"seed": 0})
        stages.run("answers", "generate", "m")
        stages.close()
    assert processes.commands == ["generate"]


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_one_engine_answers_before_and_after_also_where_a_faster_one_could_run_the_given_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Else a change from one engine to another would count as one of the model."""
    processes = Processes()
    monkeypatch.setattr(module, "run_python", processes)
    stages, problems = Stages(tmp_path / "out", {}), Problems((problem("f", "a.py"),), (problem("g", "b.py"),))
    chosen = options(tmp_path, device=device)
    for name, model in (("base", "m"), ("round-1", "run")):
        Rounds("m", chosen, problems, stages, {}).generated(name, tmp_path, "exam", (model,), ())
    stages.close()
    engines = [word for before, word in pairwise(processes.words) if before == "--engine"]
    assert engines == ["transformers", "transformers"]


@pytest.mark.parametrize(("code", "error"), [(1, UnjudgedError), (2, MftError)])
def test_a_failed_stage_ends_the_command_and_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    """Exit code 1 of an evaluation is a sandbox that failed: no answer counts as wrong because of it."""
    processes = Processes(code)
    monkeypatch.setattr(module, "run_python", processes)
    for _ in range(2):
        stages = Stages(tmp_path / "out", {"seed": 0})
        with pytest.raises(error, match="By hand: mft evaluate x"):
            stages.run("tests", "evaluate", "x")
        stages.close()
    assert processes.commands == ["evaluate", "evaluate"]


def test_a_folder_that_other_settings_made_is_refused(tmp_path: Path) -> None:
    Stages(tmp_path / "out", {"seed": 0, "samples": 8}).close()
    with pytest.raises(MftError, match="made with another samples: 8, now 4") as found:
        Stages(tmp_path / "out", {"seed": 0, "samples": 4})
    assert found.value.problems[-1].endswith("Only --rounds may change")


@pytest.mark.parametrize("first", ["[1]", '{"settings": 5}'])
def test_a_damaged_folder_is_named(tmp_path: Path, first: str) -> None:
    (tmp_path / "stages.jsonl").write_text(f"{first}\n")
    with pytest.raises(MftError, match=r"stages\.jsonl: is damaged"):
        Stages(tmp_path, {"seed": 0})


def test_an_out_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(MftError, match=r"out: is a file\. Give another --out"):
        Stages(tmp_path / "out", {})


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(MftError, match="holds something else than an `mft improve`"):
        Stages(tmp_path, {})


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux only")
def test_a_problem_whose_own_solution_fails_is_named_before_anything_is_sampled(tmp_path: Path) -> None:
    records = [problem(name, f"{name}.py") for name in "abcd"]
    for record in records:
        record["test"] = f"assert {record['entry_point']}(1) == 2\n"
    with pytest.raises(
        BenchmarkError, match=r"its own solution does not pass its tests \(failed\)\. Remove it"
    ) as found:
        improve("m", options(written(tmp_path, records)))
    assert len(found.value.problems) == 2
    assert not (tmp_path / "out" / "base").exists()
