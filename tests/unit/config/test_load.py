"""Reading a config: what is accepted, and the error line for each mistake."""

from pathlib import Path

import pytest

from mftcoder.config.load import apply_override, dump_yaml, load_config, parse_yaml
from mftcoder.errors import ConfigError

MINIMAL = "model: some/model\ntasks: {tests: data/tests, repair: data/repair}\noutput_dir: runs/a\n"


def write(folder: Path, text: str | bytes, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [line.replace(str(path), "FILE") for line in caught.value.problems]


def test_three_lines_are_a_run(tmp_path: Path) -> None:
    run = load_config(write(tmp_path, MINIMAL))
    assert run.model.model_name_or_path == "some/model"
    assert run.task_names == ("tests", "repair")


def test_json_says_the_same_as_yaml(tmp_path: Path) -> None:
    text = '{"model": "some/model", "tasks": {"tests": "data/tests", "repair": "data/repair"}, "output_dir": "runs/a"}'
    assert load_config(write(tmp_path, text, "run.json")) == load_config(write(tmp_path, MINIMAL))


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()
    assert load_config(write(tmp_path, text)).output_dir == "runs/a"


def test_the_resolved_config_reads_back_to_the_same_run(tmp_path: Path) -> None:
    run = load_config(write(tmp_path, MINIMAL), ["train.learning_rate=1e-4", "tasks.tests.validation=[a, b]"])
    assert load_config(write(tmp_path, dump_yaml(run), "again.yaml")) == run


def test_scientific_notation_is_a_number_and_no_is_a_word() -> None:
    assert parse_yaml("rate: 1e-4\nstrategy: no", origin="x") == {"rate": 1e-4, "strategy": "no"}


def test_all_problems_come_together_with_their_field_paths(tmp_path: Path) -> None:
    text = (
        "model: some/model\ntasks:\n  - {name: tests, path: data/tests, weight: -1}\n  - {name: repair, format: alpca}\n"
        "train: {learning_rate: fast, cutoff: 5}\nloss: {normalization: toekn}\noutput_dir: runs/a\n"
    )
    assert problems_of(write(tmp_path, text)) == [
        "FILE: tasks.tests.weight: Input should be greater than or equal to 0, not -1",
        "FILE: tasks.repair.format: unknown format 'alpca'. Did you mean 'alpaca'?",
        "FILE: loss.normalization: Input should be 'token', 'sample', 'task_token', 'task_sample' or 'corpus', not 'toekn'",
        "FILE: train.learning_rate: Input should be a valid number, unable to parse string as a number, not 'fast'",
        "FILE: train.cutoff: unknown key. Known: " + problems_of(write(tmp_path, text))[-1].split("Known: ")[1],
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {lr: 1}", "train.lr: unknown key. Did you mean 'train.learning_rate'?"),
        ("learning_rate: 1", "learning_rate: unknown key. Did you mean 'train.learning_rate'?"),
        ("data: {cutoff_len: 5}", "data.cutoff_len: unknown key. Did you mean 'data.max_length'?"),
        ("adapter: {lora_r: 5}", "adapter.lora_r: unknown key. Did you mean 'adapter.lora_rank'?"),
        ("train: {learning_rte: 1}", "train.learning_rte: unknown key. Did you mean 'learning_rate'?"),
        ("base_model: x", "base_model: unknown key. Did you mean 'model.model_name_or_path'?"),
        ("datasets: x", "datasets: unknown key. Did you mean 'tasks'?"),
        ("data: [1]", "data: should be a section of fields, not [1]"),
        ("train: 3", "train: should be a section of fields, not 3"),
        (
            "train: {warmup_steps: 1.5}",
            "train.warmup_steps: 1.5 is neither a whole number of steps nor a fraction below 1",
        ),
        ("train: {metric_for_best_model: loss/test}", "train.metric_for_best_model: unknown metric 'loss/test'."),
    ],
)
def test_a_wrong_key_is_answered_with_the_right_one(tmp_path: Path, line: str, expected: str) -> None:
    (problem,) = problems_of(write(tmp_path, MINIMAL + line + "\n"))
    assert problem.startswith(f"FILE: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "FILE: a config is a mapping of sections (model, tasks, train, ...), not empty"),
        ("- a\n- b\n", "FILE: a config is a mapping of sections (model, tasks, train, ...), not a list"),
        ("model: {\n", "FILE:2: not valid YAML: "),
        ("model: a\nmodel: b\n", "FILE:2: not valid YAML: found duplicate key"),
        ("model: !!python/object:os.system x\n", "FILE:1: not valid YAML: could not determine a constructor"),
        ("model: a\ntasks: {}\noutput_dir: b\n", "FILE: tasks: "),
        ("tasks: {a: b}\noutput_dir: b\n", "FILE: model: is required"),
        (b"\xff\xfe\x00bad", "FILE: cannot be read: "),
        ("model: a\ntasks: {a: b, ..: c}\noutput_dir: b\n", "FILE: tasks.1.name: "),
        ("a: &a [*a]\n", "FILE: "),
    ],
)
def test_a_file_that_is_no_config_is_answered_in_a_line(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert problems_of(write(tmp_path, text))[0].startswith(expected.replace("tasks.1.", "tasks...."))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model": "a",}', "FILE:1: not valid JSON: "),
        ('{"model": "a", "model": "b"}', "FILE: key 'model' appears twice"),
        ("[" * 100_000, "FILE: nested too deeply"),
        ('{"model": ' + "9" * 5000 + "}", "FILE: not valid JSON: "),
    ],
)
def test_broken_json_is_answered_in_a_line(tmp_path: Path, text: str, expected: str) -> None:
    assert problems_of(write(tmp_path, text, "run.json"))[0].startswith(expected)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.yaml") == ["FILE: no such file"]
    assert problems_of(tmp_path) == ["FILE: is a folder; give a YAML or JSON file"]


def test_overrides_reach_sections_tasks_and_shorthands(tmp_path: Path) -> None:
    run = load_config(
        write(tmp_path, MINIMAL),
        ["train.max_steps=5", "tasks.repair.weight=3", "model.dtype=float32", "adapter=full", "data.packing=false"],
    )
    assert (run.train.max_steps, run.tasks[1].weight, run.adapter.type) == (5, 3.0, "full")
    assert (run.model.model_name_or_path, run.model.dtype) == ("some/model", "float32")
    assert run.data.packing == "none"


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, MINIMAL), ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_steps", "override 'train.max_steps': write section.field=value"),
        ("=5", "override '=5': write section.field=value"),
        ("train..seed=5", "override 'train..seed=5': write section.field=value"),
        ("output_dir.x=5", "override 'output_dir': 'output_dir' is a text, not a section"),
        ("train.seed=[", "override 'train.seed=[':1: not valid YAML"),
        ("train.sed=5", "FILE: train.sed: unknown key. Did you mean 'seed'?"),
    ],
)
def test_a_wrong_override_is_answered_in_a_line(tmp_path: Path, override: str, expected: str) -> None:
    assert problems_of(write(tmp_path, MINIMAL), override)[0].startswith(expected)


def test_an_override_of_a_task_that_does_not_exist_names_it() -> None:
    raw = {"tasks": [{"name": "tests", "path": "data"}]}
    with pytest.raises(ConfigError, match="nothing is named 'repair' there"):
        apply_override(raw, "tasks.repair.weight=2")
    apply_override(raw, "tasks.0.weight=2")
    assert raw["tasks"] == [{"name": "tests", "path": "data", "weight": 2}]


def test_a_choice_of_when_to_sum_gradients_is_refused_where_it_would_do_nothing_or_lose_digits(tmp_path: Path) -> None:
    chosen = "train: {sync_each_batch: false}\n"
    (problem,) = problems_of(write(tmp_path, MINIMAL + chosen + "backend: ddp\n"))
    assert "train.sync_each_batch: is for backend fsdp2; ddp leaves no choice" in problem
    (problem,) = problems_of(write(tmp_path, MINIMAL + chosen + "backend: {name: fsdp2, reduce_dtype: bfloat16}\n"))
    assert "train.sync_each_batch: false would add micro-batches up in bfloat16" in problem
    assert load_config(write(tmp_path, MINIMAL + chosen + "backend: fsdp2\n")).train.sync_each_batch is False


def test_what_cannot_run_slices_of_rows_is_refused_together(tmp_path: Path) -> None:
    text = MINIMAL.replace("some/model", "{model_name_or_path: some/model, attn_implementation: eager}")
    text += "backend: {name: local, context_parallel_size: 2}\ntrain: {torch_compile: true}\n"
    (problem,) = problems_of(write(tmp_path, text))
    assert "backend.context_parallel_size" in problem
    for field in ("backend.name: local", "model.attn_implementation: eager", "train.torch_compile"):
        assert field in problem
    assert load_config(write(tmp_path, MINIMAL + "backend: {context_parallel_size: 2}\n"))
