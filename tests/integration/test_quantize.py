"""`mft export --quantize` on run folders and model folders, through the real command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

from mftcoder.app.results.quantize import quantize
from mftcoder.app.results.verify import verify_folder
from mftcoder.cli import cli
from mftcoder.cli.group import main
from mftcoder.config.load import load_config
from mftcoder.errors import BrokenReleaseError, ConfigError, ModelError
from mftcoder.models.export.source import find_source, open_run


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
