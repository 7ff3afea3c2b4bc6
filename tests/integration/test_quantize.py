"""`mft export --quantize` on run folders and model folders, through the real command."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from mftcoder.app.results.quantize import _texts, quantize
from mftcoder.app.results.verify import verify_folder
from mftcoder.app.serving.chat import open_chat
from mftcoder.cli import cli
from mftcoder.cli.group import main
from mftcoder.config.load import load_config
from mftcoder.errors import BrokenReleaseError, ConfigError, DataError, ModelError
from mftcoder.models.export.quantized.texts import measure
from mftcoder.models.export.source import find_source, open_run
from tests.forked import run as run_command


def mft(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Path:
    """A run of two steps on two tasks, with validation samples."""
    folder = tmp_path_factory.mktemp("quantize")
    for task, word in (("tests", "def"), ("fixes", "return")):
        (folder / task).mkdir()
        records = [
            {
                "messages": [
                    {"role": "user", "content": f"{word} {n}"},
                    {"role": "assistant", "content": f"{word} value {n}"},
                ]
            }
            for n in range(20)
        ]
        (folder / task / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {
        "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
        "adapter": {"type": "lora", "lora_rank": 4},
        "tasks": {"tests": str(folder / "tests"), "fixes": str(folder / "fixes")},
        "data": {"chat_template": "chatml", "max_length": 64, "val_size": 0.2, "cache_dir": str(folder / "cache")},
        "train": {"max_steps": 2, "learning_rate": 0.01},
        "output_dir": str(folder / "run"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    done = mft("train", folder / "config.json")
    assert done.exit_code == 0, done.output
    return folder / "run"


def test_a_run_becomes_one_file_with_table_card_and_checksums(run: Path, tmp_path: Path) -> None:
    done = mft("export", run, tmp_path / "my", "--quantize", "GGUF:q8_0")
    assert done.exit_code == 0, done.output
    out = tmp_path / "my"
    assert sorted(path.name for path in out.iterdir()) == [
        "MANIFEST.md5", "MANIFEST.sha256", "README.md", "my-Q8_0.gguf", "quantization.json",
    ]  # fmt: skip
    verify_folder(out)
    told = json.loads((out / "quantization.json").read_text())
    assert set(told["losses"]) == {"tests", "fixes"}
    for task in told["losses"].values():
        assert task["texts"] == 4
        assert 0 < abs(task["after"] - task["before"]) < 0.01
    assert told["bytes"]["after"] == (out / "my-Q8_0.gguf").stat().st_size < 0.4 * told["bytes"]["before"]
    for text in (done.output, (out / "README.md").read_text()):
        assert "| loss of tests (" in text
        assert "| weights on disk |" in text
    assert [path.name for path in tmp_path.iterdir()] == ["my"]


def test_the_measured_loss_is_that_of_the_exported_model(run: Path, tmp_path: Path) -> None:
    """Computed here from the export's own files, by transformers, over the answers of the validation samples."""
    release = quantize(run, tmp_path / "q", "gguf:F32")
    assert mft("export", run, tmp_path / "whole").exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    from mftcoder.data.prepared.store import prepare

    samples = prepare(open_run(run).run).validation(0)  # type: ignore[arg-type]
    total = tokens = 0.0
    for index in range(len(samples)):
        sample = samples.sample(index)
        targets = torch.from_numpy(sample.targets.astype("int64"))
        with torch.no_grad():
            logits = model(torch.from_numpy(sample.input_ids.astype("int64"))[None]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
        tokens += int((targets != -100).sum())
    assert release.before["tests"].loss == pytest.approx(total / tokens, rel=1e-4)
    assert release.after["tests"].loss == pytest.approx(total / tokens, rel=1e-4)
    assert release.after["tests"].tokens == tokens


def test_the_file_is_read_by_transformers_with_its_template_and_its_end(run: Path, tmp_path: Path) -> None:
    quantize(run, tmp_path / "q", "gguf:F16")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "q", gguf_file="q-F16.gguf", dtype=torch.float32)
    ours = open_run(run).load(device="cpu", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(read(ids).logits, ours(ids).logits, atol=2e-3, rtol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "q", gguf_file="q-F16.gguf")
    text = "def add(a, b):\n    return  a + 12"
    source = find_source(str(tmp_path / "q" / "q-F16.gguf"))
    assert tokenizer(text)["input_ids"] == source.tokenizer.encode(text) == open_run(run).tokenizer.encode(text)
    assert "<|im_start|>user" in str(source.tokenizer.chat_template)


@pytest.mark.slow(reason="two processes load torch and answer an exam")
def test_pass_at_1_of_exams_before_and_after_is_in_table_and_json(tiny_llama_dir: Path, tmp_path: Path) -> None:
    done = mft("export", tiny_llama_dir, tmp_path / "q", "--quantize", "gguf:Q8_0", "--exam", "mini")
    assert done.exit_code == 0, done.output
    assert "| pass@1 of mini | 0.0% | 0.0% | +0.0 points |" in done.output
    assert json.loads((tmp_path / "q" / "quantization.json").read_text())["pass@1"] == {
        "mini": {"before": 0, "after": 0}
    }
    failed = mft("export", tiny_llama_dir, tmp_path / "r", "--quantize", "gguf:Q8_0", "--exam", "minni")
    assert "--exam: mft generate failed (exit code 2)" in str(failed.exception)
    assert "Did you mean 'mini'" in str(failed.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_a_model_folder_is_measured_on_fixed_texts(tiny_llama_dir: Path, tmp_path: Path) -> None:
    release = quantize(tiny_llama_dir, tmp_path / "q", "gguf:Q4_0")
    assert set(release.after) == {"fixed texts"}
    assert release.types == {"Q4_0": 15, "F32": 5, "Q8_0": 1}


def test_a_release_that_lost_too_much_is_refused_with_exit_code_1_and_nothing_is_left(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(
            ["export", str(tiny_llama_dir), str(tmp_path / "q"), "--quantize", "gguf:Q4_0", "--max-loss-increase", "0"]
        )
    assert stop.value.code == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "fixed texts: its loss rises from" in error
    assert "--max-loss-increase" in error
    assert not list(tmp_path.iterdir())


def test_a_file_whose_weights_are_broken_is_found_on_load(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is written fifty times too large."""
    from mftcoder.models.export.quantized import gguf_layout

    whole = gguf_layout._in_file
    monkeypatch.setattr(
        gguf_layout,
        "_in_file",
        lambda key, tensor, name, config: whole(key, tensor, name, config) * (50 if key == "output" else 1),
    )
    with pytest.raises(BrokenReleaseError, match="fixed texts: its loss rises"):
        quantize(tiny_llama_dir, tmp_path / "q", "gguf:F16")
    assert not list(tmp_path.iterdir())


def test_wrong_words_are_answered_before_anything_is_written(
    run: Path, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--quantize: unknown method 'gguf:Q4_KM'. Did you mean 'gguf:Q4_K_M'\?"):
        quantize(run, tmp_path / "q", "gguf:Q4_KM")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match="llama-quantize is not on the PATH"):
        quantize(run, tmp_path / "q", "gguf:Q4_K_M")
    assert "is for --quantize" in mft("export", run, tmp_path / "q", "--validation-samples", 3).output
    quantize(tiny_llama_dir, tmp_path / "first", "gguf:Q8_0")
    with pytest.raises(ModelError, match="is quantized already; quantize the model that it was made from"):
        quantize(tmp_path / "first" / "first-Q8_0.gguf", tmp_path / "q", "gguf:Q4_0")
    with pytest.raises(ModelError, match="exists already"):
        quantize(run, tmp_path / "first", "gguf:Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(ModelError, match=r"q: cannot be written: No space left on device. Nothing was left behind"):
        quantize(tiny_llama_dir, tmp_path / "q", "gguf:Q8_0")
    assert not list(tmp_path.iterdir())


def killed_by_the_fifth_tensor() -> None:
    """As kill -9 in the middle of the file."""
    write, written = gguf.GGUFWriter.write_tensor_data, iter(range(4))

    def counted(*given: Any) -> None:
        if next(written, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*given)

    gguf.GGUFWriter.write_tensor_data = counted  # type: ignore[method-assign]


def test_a_killed_export_leaves_nothing_that_passes_as_a_release_and_the_next_one_works(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    words = ("export", tiny_llama_dir, tmp_path / "q", "--quantize", "gguf:Q8_0")
    killed = run_command(*words, first=killed_by_the_fifth_tensor)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".q.")
    with pytest.raises(ModelError, match="there is nothing to verify it against"):
        verify_folder(left)
    with pytest.raises(ModelError, match=r"q-Q8_0\.gguf: "):
        find_source(str(left / "q-Q8_0.gguf"))
    with pytest.raises(ModelError, match="is not a model folder"):
        find_source(str(left))
    again = run_command(*words)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    verify_folder(tmp_path / "q")


def test_without_validation_data_the_fixed_texts_are_measured_and_that_is_told(
    run: Path, tmp_path: Path, said: Callable[[], str]
) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    config = load_config(moved / "config.yaml")
    text = (moved / "config.yaml").read_text().replace(str(config.tasks[0].path), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(text)
    release = quantize(moved, tmp_path / "q", "gguf:Q8_0")
    assert set(release.after) == {"fixed texts"}
    assert "the run's validation data cannot be read, so only fixed texts are measured" in said()


@pytest.fixture
def failing_tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that keeps the job it is given, and fails."""
    folder = tmp_path_factory.mktemp("tool")
    tool = folder / "python"
    tool.write_text(
        f'#!/bin/sh\nif [ "$2" = "-c" ]; then exit 0; fi\ncp "$3" {folder}/job.json\necho "no memory for layer 3" >&2\nexit 1\n'
    )
    tool.chmod(0o755)
    return tool


def test_calibration_is_the_models_own_answers_to_training_questions_of_each_task_in_turn(
    run: Path, tmp_path: Path, failing_tool: Path
) -> None:
    options = {"python": str(failing_tool), "calibration_samples": 6, "answer_tokens": 5, "seed": 3}
    with pytest.raises(ModelError, match="gptq: llmcompressor failed: no memory for layer 3"):
        quantize(run, tmp_path / "q", "gptq", **options)
    assert not list(tmp_path.iterdir())
    job = json.loads((failing_tool.parent / "job.json").read_text())
    assert (job["method"], job["group_size"], job["seed"], len(job["calibration"])) == ("gptq", 32, 3, 6)
    source = open_run(run)
    model = source.load(device="cpu", dtype=torch.float32)
    for number, ids in enumerate(job["calibration"]):
        text = source.tokenizer.decode(ids)
        assert text.startswith(f"<|im_start|>user\n{('def', 'return')[number % 2]} ")
        prompt, _, answer = text.partition("<|im_start|>assistant\n")
        asked = torch.tensor([source.tokenizer.encode(prompt + "<|im_start|>assistant\n")])
        with torch.no_grad():
            own = model.generate(asked, max_new_tokens=5, do_sample=False)[0, asked.shape[1] :].tolist()
        assert answer == source.tokenizer.decode(own)
    with pytest.raises(ModelError):
        quantize(run, tmp_path / "q", "gptq", **options)
    assert json.loads((failing_tool.parent / "job.json").read_text())["calibration"] == job["calibration"]


def test_a_file_of_calibration_texts_is_used_as_it_is(tiny_llama_dir: Path, tmp_path: Path, failing_tool: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"prompt": "<s>def", "answer": " x"}) + "\n")
    with pytest.raises(ModelError, match="awq: llmcompressor failed"):
        quantize(tiny_llama_dir, tmp_path / "q", "awq", python=str(failing_tool), calibration=file)
    encode = find_source(str(tiny_llama_dir)).tokenizer.encode
    job = json.loads((failing_tool.parent / "job.json").read_text())
    assert job["calibration"] == [encode("<s>def") + encode(" x")]
    file.write_text('{"prompt": "a"}\n[]\n')
    with pytest.raises(DataError) as caught:  # before llmcompressor is looked for
        quantize(tiny_llama_dir, tmp_path / "q", "awq", python="/no/such", calibration=file)
    assert [problem.rpartition("/")[2] for problem in caught.value.problems] == [
        f"texts.jsonl:{line}: has no 'prompt' and 'answer' that are texts" for line in (1, 2)
    ]


def test_what_a_method_does_not_follow_or_lacks_is_told(
    tiny_llama_dir: Path, tmp_path: Path, failing_tool: Path
) -> None:
    tool = {"python": str(failing_tool)}
    with pytest.raises(ConfigError) as caught:
        quantize(tiny_llama_dir, tmp_path / "q", "gguf:Q8_0", group_size=64, **tool)
    assert caught.value.problems == (
        "--group-size: has no effect on gguf:Q8_0",
        "--python: has no effect on gguf:Q8_0",
    )
    with pytest.raises(ConfigError, match=r"--exam: unknown task 'humanevalx'\. Did you mean 'humaneval'\?"):
        quantize(tiny_llama_dir, tmp_path / "q", "gguf:Q8_0", exams=["mini", "humanevalx"])
    with pytest.raises(ConfigError, match="is no run that has some\\. Give --calibration FILE"):
        quantize(tiny_llama_dir, tmp_path / "q", "gptq", **tool)
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}) + "\n")
    with pytest.raises(ModelError, match=r"has 32 columns, which groups of 64 do not divide. Choose --group-size 32"):
        quantize(
            tiny_llama_dir, tmp_path / "q", "gptq", group_size=64, calibration=tmp_path / "t.jsonl", python="/no/such"
        )  # before llmcompressor is looked for
    with pytest.raises(ModelError, match=r"--python .*: cannot import llmcompressor: ModuleNotFoundError"):
        quantize(tiny_llama_dir, tmp_path / "q", "int8", python=sys.executable)
    with pytest.raises(ModelError, match="--python /no/such: cannot be run: No such file"):
        quantize(tiny_llama_dir, tmp_path / "q", "int8", python="/no/such")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


LLMCOMPRESSOR = os.environ.get("MFTCODER_LLMCOMPRESSOR", "")


@pytest.mark.slow(reason="llmcompressor, in its own environment, needs half a minute for each method")
@pytest.mark.skipif(not LLMCOMPRESSOR, reason="MFTCODER_LLMCOMPRESSOR names no interpreter with llmcompressor")
@pytest.mark.parametrize("method", ["gptq", "awq", "int8", "fp8"])
def test_llmcompressor_writes_a_release_that_transformers_reads(run: Path, tmp_path: Path, method: str) -> None:
    options = {"calibration_samples": 8, "answer_tokens": 8} if method in ("gptq", "awq") else {}
    release = quantize(run, tmp_path / "q", method, python=LLMCOMPRESSOR, max_loss_increase=0.2, **options)
    assert set(release.after) == {"tests", "fixes"}
    assert release.bytes_after < release.bytes_before
    told = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert told["quant_method"] == "compressed-tensors"
    assert (tmp_path / "q" / "chat_template.jinja").is_file()
    assert (tmp_path / "q" / "calibration.jsonl").is_file() == (method in ("gptq", "awq"))
    verify_folder(tmp_path / "q")
    if find_spec("compressed_tensors") is None:
        with pytest.raises(ModelError, match=r"pip install 'mftcoder\[compressed\]'"):
            open_chat(str(tmp_path / "q"))
        return
    chat, whole = (open_chat(str(model), dtype="float32") for model in (tmp_path / "q", run))
    assert chat.prompt_ids("def 1") == whole.prompt_ids("def 1")
    for task, measured in measure(chat.model, _texts(open_run(run), 100)).items():
        assert measured.loss == pytest.approx(release.after[task].loss, abs=1e-3)
