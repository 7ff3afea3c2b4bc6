"""`mft generate` through the real command, on a tiny random model and the project's own benchmark."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mftcoder.app.scoring import engine_choice
from mftcoder.app.scoring.engine_choice import open_engine
from mftcoder.benchmarks.catalogue import load
from mftcoder.cli import cli
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ConfigError, ModelError
from mftcoder.generation.engine import Sampling
from mftcoder.models.export.source import find_source
from tests.integration import test_backends
from tests.integration.test_backends import Ranks, output

ranks = test_backends.ranks
FAST = ("--max-new-tokens", "12", "--dtype", "float32")


def generate(model: Path, out: Path, *arguments: object) -> Result:
    words = ["generate", str(model), "--task", "mini", "--out", str(out), *FAST, *map(str, arguments)]
    return CliRunner().invoke(cli, words, catch_exceptions=False)


def answers(out: Path) -> list[list[str]]:
    return json.loads(next(out.glob("generations_mini_*.json")).read_text())


def test_answers_stand_in_problem_order_with_their_settings_beside(tiny_llama_dir: Path, tmp_path: Path) -> None:
    generate(tiny_llama_dir, tmp_path, "--name", "tiny", "--limit", "5")
    problems = load("mini", None).problems[:5]
    assert len(answers(tmp_path)) == 5
    assert all(
        sample[0].startswith(problem.prompt) for sample, problem in zip(answers(tmp_path), problems, strict=True)
    )
    settings = json.loads((tmp_path / "settings_mini_tiny.json").read_text())
    assert settings["sampling"] == {
        "max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "seed": 0, "max_length": None,
    }  # fmt: skip
    assert settings["mode"] == "completion"
    files = ["completions_mini_tiny.jsonl", "generations_mini_tiny.json", "settings_mini_tiny.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_answers_that_transformers_began_stay_with_it_where_auto_would_take_another_engine(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    generate(tiny_llama_dir, tmp_path, "--name", "m", "--limit", "3", "--engine", "transformers")
    again = generate(tiny_llama_dir, tmp_path, "--name", "m", "--limit", "3")
    assert "3 of 3 samples are already done" in again.stderr
    assert json.loads((tmp_path / "settings_mini_m.json").read_text())["engine"] == "transformers"
    generate(tiny_llama_dir, tmp_path, "--name", "new", "--limit", "3")
    assert json.loads((tmp_path / "settings_mini_new.json").read_text())["engine"] == "openvino"


def test_answers_of_a_model_that_openvino_cannot_run_are_those_of_transformers_and_say_so(
    untraceable_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", {"gemma2"})
    words = ("--name", "m", "--limit", "3")
    with pytest.raises(ModelError, match=r"OpenVINO cannot run Gemma2ForCausalLM.* Use --engine transformers"):
        generate(untraceable_dir, tmp_path, *words, "--engine", "openvino")
    done = generate(untraceable_dir, tmp_path, *words)
    assert "the transformers engine takes its place" in done.stderr and len(answers(tmp_path)) == 3
    assert json.loads((tmp_path / "settings_mini_m.json").read_text())["engine"] == "transformers"
    assert "3 of 3 samples are already done" in generate(untraceable_dir, tmp_path, *words).stderr


def test_a_cut_journal_is_gone_on_from_and_gives_the_same_file(tiny_llama_dir: Path, tmp_path: Path) -> None:
    sampled = ("--limit", "4", "--n-samples", "2", "--temperature", "1", "--name", "m", "--seed", "3")
    generate(tiny_llama_dir, tmp_path, *sampled)
    whole = answers(tmp_path)
    journal = tmp_path / "completions_mini_m.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 4 * 2
    journal.write_text("".join(lines[:4]) + lines[4][:20])
    (tmp_path / "generations_mini_m.json").unlink()
    again = generate(tiny_llama_dir, tmp_path, *sampled)
    assert "3 of 8 samples are already done" in again.stderr
    assert answers(tmp_path) == whole
    assert {len(samples) for samples in whole} == {2}


def test_two_processes_write_what_one_writes(tiny_llama_dir: Path, tmp_path: Path, ranks: Ranks) -> None:
    sampled = ("--limit", "5", "--n-samples", "2", "--temperature", "1", "--name", "m", "--device", "cpu")
    generate(tiny_llama_dir, tmp_path / "one", *sampled)
    words = ["generate", tiny_llama_dir, "--task", "mini", "--out", tmp_path / "two", *FAST, *sampled]
    assert ranks(2, tmp_path, *words) == [0, 0], output(tmp_path)
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


def test_what_another_number_of_processes_has_written_is_gone_on_from(tiny_llama_dir: Path, tmp_path: Path) -> None:
    generate(tiny_llama_dir, tmp_path, "--limit", "5", "--name", "m")
    whole = answers(tmp_path)
    journal = tmp_path / "completions_mini_m.jsonl"
    settings, *rows = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([settings, *rows[:2]]))
    (tmp_path / "completions_mini_m.rank1.jsonl").write_text("".join([settings, *rows[2:4], rows[4][:30]]))
    other = tmp_path / "completions_mini_m.rank2.jsonl"
    other.write_text(settings.replace('"limit": 5', '"limit": 4').replace('"seed": 0', '"seed": 1') + rows[4])
    done = generate(tiny_llama_dir, tmp_path, "--limit", "5", "--name", "m")
    assert "4 of 5 samples are already done" in done.stderr
    assert answers(tmp_path) == whole
    assert journal.read_text().count("\n") == 6
    assert [path.name for path in tmp_path.glob("*.rank*")] == [
        other.name
    ]  # made with other settings: not ours to remove


def test_answers_can_be_scored_by_the_same_command(tiny_llama_dir: Path, tmp_path: Path) -> None:
    done = generate(tiny_llama_dir, tmp_path, "--limit", "3", "--name", "m", "--evaluate")
    assert "pass@1" in done.stdout
    assert json.loads((tmp_path / "metrics_mini_m.json").read_text())["scores"]["pass@1"]["problems"] == 3


def test_an_engine_that_is_not_there_is_said_so(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        generate(tiny_llama_dir, tmp_path, "--engine", "vlm")
    if find_spec("vllm") is None:
        with pytest.raises(ConfigError, match="vLLM is not installed"):
            generate(tiny_llama_dir, tmp_path, "--engine", "vllm")


def test_a_finished_run_needs_no_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    generate(tiny_llama_dir, tmp_path, "--limit", "2", "--name", "m")
    first = answers(tmp_path)
    (tmp_path / "generations_mini_m.json").unlink()
    assert "2 of 2 samples are already done" in generate(tiny_llama_dir, tmp_path, "--limit", "2", "--name", "m").stderr
    assert answers(tmp_path) == first


def test_other_settings_start_anew(tiny_llama_dir: Path, tmp_path: Path) -> None:
    generate(tiny_llama_dir, tmp_path, "--limit", "2", "--name", "m")
    again = generate(tiny_llama_dir, tmp_path, "--limit", "2", "--name", "m", "--prefix", "# python\n")
    assert "already done" not in again.stderr


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_another_model_of_equal_size_and_time_starts_anew(tiny_llama_dir: Path, tmp_path: Path, changed: str) -> None:
    """As `rsync -a` puts one checkpoint of a run in the place of another."""
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    generate(folder, tmp_path, "--limit", "1")
    before, times = answers(tmp_path), (folder / changed).stat()
    content = (folder / changed).read_bytes()
    other = (
        content.replace(b"10000.0", b"10000.9") if changed == "config.json" else content[:-4000] + content[-8000:-4000]
    )
    assert len(other) == len(content)
    assert other != content
    (folder / changed).write_bytes(other)
    os.utime(folder / changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = generate(folder, tmp_path, "--limit", "1")
    assert "already done" not in again.stderr
    if changed == "model.safetensors":
        assert answers(tmp_path) != before


def test_options_that_would_change_nothing_are_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        generate(tiny_llama_dir, tmp_path, "--system", "Be right.", "--template", "chatml", "--checkpoint", "latest")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--system", "--template", "--checkpoint latest",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_chat_mode_uses_the_models_template(tiny_llama_dir: Path, tmp_path: Path) -> None:
    generate(tiny_llama_dir, tmp_path, "--limit", "1", "--name", "m", "--mode", "chat", "--template", "mftcoder")
    assert "<s>bot" in json.loads((tmp_path / "settings_mini_m.json").read_text())["template"]


def test_a_prompt_that_fills_the_allowed_length_gets_an_empty_answer_and_a_line(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    lengths = [
        len(load_tokenizer(str(tiny_llama_dir)).encode(p.prompt.strip())) for p in load("mini", None).problems[:4]
    ]
    longest = max(lengths)
    done = generate(tiny_llama_dir, tmp_path, "--limit", "4", "--name", "m", "--max-length", longest)
    assert (
        f"warning: mini: {lengths.count(longest)} prompts fill --max-length alone; their answers are empty"
        in done.stderr
    )
    rows = [json.loads(line) for line in (tmp_path / "completions_mini_m.jsonl").read_text().splitlines()[1:]]
    tokens = {row["problem_id"]: row["tokens"] for row in rows}
    assert [tokens[f"mini/{n}"] for n in range(4)] == [min(12, longest - length) for length in lengths]


def test_the_chosen_end_token_ends_an_answer_beside_the_models_own(tiny_llama_dir: Path) -> None:
    source = find_source(str(tiny_llama_dir))

    def ends(end_token: str | None) -> frozenset[int]:
        engine: Any = open_engine(
            "transformers", source, Sampling(), None, device="cpu", dtype=torch.float32, batch_size=None, as_trained=False,
            end_token=end_token,
        )  # fmt: skip
        return engine.end_ids

    assert ends("</s>") - ends(None) == {source.tokenizer.backend.token_to_id("</s>")}
    assert ends(None) < ends("</s>")


def test_an_unknown_template_is_named(tiny_llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown template 'chatlm'"):
        generate(tiny_llama_dir, tmp_path, "--limit", "1", "--mode", "chat", "--template", "chatlm")


@pytest.mark.parametrize("words", [("--n-samples", "2"), ("--top-p", "0.9")])
def test_greedy_answers_are_all_the_same_and_have_no_top_p(
    tiny_llama_dir: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="needs a --temperature above 0"):
        generate(tiny_llama_dir, tmp_path, *words)


def test_code_is_written_from_the_descriptions_of_the_same_model(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """explainsynthesize reads what explaindescribe wrote, and starts anew when a description changes."""
    rows = [
        {
            "task_id": f"Python/{number}", "prompt": "def f(x):\n", "declaration": "def f(x):\n", "entry_point": "f",
            "canonical_solution": "    return x\n", "buggy_solution": "", "test": "assert f(1) == 1\n", "import": "",
            "docstring": "Give x back.", "instruction": "Write f.",
        }
        for number in range(2)
    ]  # fmt: skip
    (tmp_path / "data/humanevalpack").mkdir(parents=True)
    (tmp_path / "data/humanevalpack/python.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def written(kind: str, name: str = "m") -> Result:
        task = f"humanevalexplain{kind}-python"
        options = ["--task", task, "--name", name, "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path), *FAST]
        return CliRunner().invoke(cli, ["generate", str(tiny_llama_dir), *options])

    refused = written("synthesize")
    assert "Generate humanevalexplaindescribe-python first, with the same --out and --name" in str(refused.exception)
    assert written("describe").exit_code == 0
    assert "first, with the same --out and --name" in str(written("synthesize", "other").exception)
    path = tmp_path / "generations_humanevalexplaindescribe-python_m.json"
    path.write_text(json.dumps([["Give x back."], ["Give x."]]))
    assert written("synthesize").exit_code == 0
    answers = json.loads((tmp_path / "generations_humanevalexplainsynthesize-python_m.json").read_text())
    assert [sample[0].startswith("def f(x):") for sample in answers] == [True, True]
    assert "already done" in written("synthesize").output
    path.write_text(json.dumps([["Give x back."], ["Something else."]]))
    assert "already done" not in written("synthesize").output
    path.write_text(json.dumps([["Give x back."]]))
    assert "descriptions of 1 problems, and 2 are asked for" in str(written("synthesize").exception)
    path.write_text(json.dumps([["Give x back."], []]))
    assert "expected a list of lists of descriptions" in str(written("synthesize").exception)
