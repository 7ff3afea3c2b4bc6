"""`mft export` and `mft generate` on run folders, through the real command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mftcoder.app.results.export import export
from mftcoder.app.results.verify import verify_folder
from mftcoder.cli import cli
from mftcoder.config.load import dump_yaml, parse_config
from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.data.records.conversation import Message
from mftcoder.data.rendering.templates import load_template
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import CheckpointError, ModelError
from mftcoder.models.export.source import open_run
from mftcoder.models.layers.adapters import attach, save_weights, trainable_parameters
from mftcoder.models.loading.load import load_model

CHAT = [("system", "Be short."), ("user", "Write `x`\n\n in {{ code }}"), ("assistant", "x = 1\n"), ("user", "Thanks")]
IDS = torch.arange(3, 40)[None]
MakeRun = Callable[..., tuple[Path, Any]]


@pytest.fixture
def make_run(tiny_llama_dir: Path, tmp_path: Path) -> MakeRun:
    """A run folder as training leaves it, and the model as it was then."""

    def make(*, adapter: str = "lora", dtype: str = "float32", **data: Any) -> tuple[Path, Any]:
        run = tmp_path / "runs" / "my"
        raw = {
            "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": dtype},
            "adapter": {"type": adapter, "lora_rank": 4},
            "tasks": {"tests": {"path": "data/tests", "weight": 2.0}, "fixes": "data/fixes"},
            "data": {"chat_template": "auto", **data},
            "output_dir": str(run),
        }
        config = parse_config(raw, origin="test")
        base = load_model(config.model, attn_implementation="sdpa", device="cpu")
        model = attach(base, AdapterConfig(type=config.adapter.type, lora_rank=4))
        torch.manual_seed(5)
        for _, parameter in trainable_parameters(model):
            parameter.data += 0.1 * torch.randn_like(parameter)
        save_weights(model, run / "checkpoints" / "step-00000020" / "model")
        (run / "checkpoints" / "latest").write_text("step-00000020\n")
        (run / "checkpoints" / "best").write_text("step-00000020\n")
        (run / "config.yaml").write_text(dump_yaml(config))
        losses = {"first": {"tests": 2.5, "fixes": 3.0}, "last": {"tests": 1.25, "fixes": 1.5}}
        (run / "summary.json").write_text(json.dumps({"validation": losses}))
        (run / "data.json").write_text(json.dumps({"tasks": {"tests": {"samples": 1234, "trained_tokens": 56789}}}))
        return run, model.eval()

    return make


def mft(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_exported_models_logits_equal_the_trained_models(make_run: MakeRun, tmp_path: Path, adapter: str) -> None:
    run, model = make_run(adapter=adapter)
    assert mft("export", run, tmp_path / "out").exit_code == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.dtype == torch.float32
    assert exported.config.use_cache is True
    torch.testing.assert_close(exported(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_only_the_rounding_of_the_weights_remains(make_run: MakeRun, tmp_path: Path) -> None:
    run, model = make_run()
    export(run, tmp_path / "out", dtype="bfloat16")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert exported.dtype == torch.bfloat16
    expected = model(IDS).logits
    assert (exported.float()(IDS).logits - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_run_generates_with_the_weights_that_its_export_has(make_run: MakeRun, tmp_path: Path) -> None:
    run, _ = make_run()
    export(run, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = open_run(run).load(device="cpu", dtype=torch.float32)
    for name, weight in exported.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name)), name


@pytest.mark.parametrize(
    "data",
    [
        {"chat_template": "auto"},
        {"chat_template": "chatml"},
        {"chat_template": "mftcoder"},
        {"chat_template": "mftcoder-v0.3"},
        {"chat_template": "codefuse-codellama"},
        {"role_markers": {"system": "### System\n", "user": "### 'Q'\n", "assistant": "### \\A\n"}},
    ],
    ids=lambda data: data.get("chat_template", "role_markers"),
)
def test_the_stock_tokenizer_renders_what_training_rendered(make_run: MakeRun, tmp_path: Path, data: dict) -> None:
    run, _ = make_run(**data)
    export(run, tmp_path / "out")
    stock = AutoTokenizer.from_pretrained(tmp_path / "out")
    source = open_run(run)
    template = load_template(source.run.data, source.tokenizer)  # type: ignore[union-attr]
    chat = [{"role": role, "content": content} for role, content in CHAT]
    messages = [Message(role, content, role == "assistant") for role, content in CHAT]  # type: ignore[arg-type]
    whole = "".join(segment.text for segment in template.render_chat(messages[:3]))
    assert stock.apply_chat_template(chat[:3], tokenize=False) == whole
    prompt = template.render_prompt(messages)
    assert stock.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == prompt
    ids = stock.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == source.tokenizer.encode(prompt) == load_tokenizer(str(tmp_path / "out")).encode(prompt)


def test_generation_stops_at_the_end_of_the_template_too(
    make_run: MakeRun, tmp_path: Path, tiny_llama_dir: Path
) -> None:
    run, _ = make_run(chat_template="chatml")
    export(run, tmp_path / "out")
    tokenizer = load_tokenizer(str(tiny_llama_dir))
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert {tokenizer.eos_id, tokenizer.backend.token_to_id("<|im_end|>")} <= set(ends)


def test_the_card_tells_data_and_losses(make_run: MakeRun, tmp_path: Path) -> None:
    run, _ = make_run()
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| tests | 2 | 1,234 | 56,789 | 2.5000 | 1.2500 | - |" in card
    assert "| fixes | 1 | - | - | 3.0000 | 1.5000 | - |" in card
    assert "LoRA, rank 4" in card


def test_verify_names_each_bad_file_with_exit_code_2(make_run: MakeRun, tmp_path: Path) -> None:
    run, _ = make_run()
    out = tmp_path / "out"
    export(run, out)
    assert mft("export", "--verify", out).exit_code == 0
    (out / "config.json").write_text("{}")
    (out / "README.md").unlink()
    with pytest.raises(ModelError) as caught:
        verify_folder(out)
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        str(out / "README.md"),
        str(out / "config.json"),
    ]


def test_an_existing_folder_is_not_touched(make_run: MakeRun, tmp_path: Path) -> None:
    run, _ = make_run()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        export(run, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_nothing_behind(make_run: MakeRun, tmp_path: Path) -> None:
    run, _ = make_run()
    weights = run / "checkpoints" / "step-00000020" / "model" / "adapter_config.json"
    weights.write_text(weights.read_text().replace('"lora_alpha"', '"alpha"'))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((KeyError, ModelError)):
        export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_is_no_run_and_an_unknown_checkpoint_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        export(tmp_path, tmp_path / "out")
    run, _ = make_run()
    with pytest.raises(CheckpointError, match=r"no checkpoint 'step-7'. Known: best, latest, step-00000020"):
        export(run, tmp_path / "out", checkpoint="step-7")
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        export(run, tmp_path / "out")


def test_pickled_base_weights_are_exported_as_safetensors(
    make_run: MakeRun, tmp_path: Path, tiny_llama_dir: Path
) -> None:
    run, model = make_run()
    base = Path(shutil.copytree(tiny_llama_dir, tmp_path / "base"))
    weights = load_model(
        ModelConfig(model_name_or_path=str(base), dtype="float32"), attn_implementation="sdpa", device="cpu"
    )
    (base / "model.safetensors").unlink()
    torch.save(weights.state_dict(), base / "pytorch_model.bin")
    text = (run / "config.yaml").read_text().replace(str(tiny_llama_dir), str(base))
    (run / "config.yaml").write_text(text.replace("use_safetensors: true", "use_safetensors: false"))
    export(run, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(exported(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
