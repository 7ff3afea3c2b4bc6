"""The Qwen (Code) contest in one sitting: from its published example config to a zip that would be accepted.

Only the paths of the config are replaced: the model is a tiny random one in Qwen-1.8B's own layout (config, tokenizer table, weights by
their original names), the two data sets are written here, and so are the 2,468 problems, in the published files' format. It takes more
than 20 seconds because it answers all of them, in 13 files, as the contest wants them.
"""

import json
import zipfile
from base64 import b64encode
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from mftcoder.benchmarks.catalogue import GROUPS
from mftcoder.cli import cli
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import MftError

EXAMPLE = Path(__file__).parents[1] / "golden" / "published" / "contest_qwen_1_8b.json"
HIDDEN, INNER, LAYERS, VOCABULARY = 32, 24, 2, 512
QWEN = {
    "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 2 * INNER, "kv_channels": 8, "seq_length": 8192,
    "rotary_emb_base": 10000, "rotary_pct": 1.0, "layer_norm_epsilon": 1e-6, "no_bias": True, "tie_word_embeddings": False,
    "use_logn_attn": True, "use_dynamic_ntk": True, "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
}  # fmt: skip
LAYER = {
    "ln_1.weight": (HIDDEN,), "ln_2.weight": (HIDDEN,), "attn.c_attn.weight": (3 * HIDDEN, HIDDEN), "attn.c_attn.bias": (3 * HIDDEN,),
    "attn.c_proj.weight": (HIDDEN, HIDDEN), "mlp.w1.weight": (INNER, HIDDEN), "mlp.w2.weight": (INNER, HIDDEN),
    "mlp.c_proj.weight": (HIDDEN, INNER),
}  # fmt: skip
HEADS = {
    "python": ("def f(x):\n", "\n"), "java": ("class Solution {\n    public int f(int x) {\n", "}"), "js": ("const f = (x) => {\n", "}"),
    "cpp": ("int f(int x){\n", "}"), "go": ("func f(x int) int {\n", "}"), "rust": ("fn f(x:i32) -> i32{\n", "}"),
}  # fmt: skip


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A folder as a download of Qwen-1.8B has it, small and random."""
    folder = tmp_path / "Qwen-1_8B"
    folder.mkdir()
    shapes = {"transformer.wte.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    shapes |= {"transformer.ln_f.weight": (HIDDEN,)}
    shapes |= {f"transformer.h.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in LAYER.items()}
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(QWEN))
    (folder / "generation_config.json").write_text('{"chat_format": "raw", "eos_token_id": 256, "pad_token_id": 256}')
    lines = [f"{b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines))
    return folder


@pytest.fixture
def data_sets(tmp_path: Path) -> list[Path]:
    """Two tasks in the format of the contest's example."""
    folders = [tmp_path / "train" / name for name in ("dataset1", "dataset2")]
    for folder in folders:
        folder.mkdir(parents=True)
        with (folder / "part.jsonl").open("w") as file:
            for n in range(20):
                turns = [
                    {"role": "human", "content": f"{folder.name}: {n}?"},
                    {"role": "bot", "content": f"```python\n{n}\n```"},
                ]
                file.write(json.dumps({"id": n, "data_name": folder.name, "chat_rounds": turns}) + "\n")
    return folders


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """HumanEvalPack's and MBPP's files with all their rows, each row as short as one can be."""
    folder = tmp_path / "data"
    for language, (head, tail) in HEADS.items():
        row = {
            "declaration": head, "prompt": head, "canonical_solution": "1" + tail, "buggy_solution": "0" + tail, "test": "t", "docstring": "d",
            "entry_point": "f", "instruction": "Write f.", "import": "", "test_setup": "", "signature": "f(x)",
        }  # fmt: skip
        write_rows(folder / "humanevalpack" / f"{language}.jsonl", [{**row, "task_id": f"{n}"} for n in range(164)])
    row = {"text": "Add.", "code": "def f(x): return x", "test_list": ["f(1)"], "test_setup_code": ""}
    write_rows(folder / "mbpp" / "mbpp.jsonl", [{**row, "task_id": n} for n in range(1, 975)])
    return folder


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mft(*words: object) -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_a_preset_leaves_open_what_the_contest_leaves_open(
    tmp_path: Path, tiny_llama_dir: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = (
        "--task",
        "mbpp",
        "--limit",
        "2",
        "--end-token",
        "</s>",
        "--system",
        "Be right.",
        "--dtype",
        "float32",
        "--name",
        "m",
    )
    done = mft(
        "generate", tiny_llama_dir, "--preset", "qwen-competition", "--data-dir", problems, "--max-length", 80, *own
    )
    assert "all: --max-length 80 --end-token '</s>' --dtype float32" in done.stderr
    assert "next: mft submit" not in done.stderr
    settings = json.loads(Path("generations_m/settings_mbpp_m.json").read_text())
    assert settings["prefix"] == "<|im_start|>system\nBe right.<|im_end|>\n<|im_start|>user\n"
    assert settings["end_token"] == "</s>"
    assert [path.name for path in sorted(Path("generations_m").glob("generations_*"))] == ["generations_mbpp_m.json"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--mode", "chat"), "--mode: --preset qwen-competition sets it"),
        (("--max-new-tokens", "5"), "--max-new-tokens: --preset qwen-competition sets it"),
        (("--task", "mbpp,mini"), "--task mini: is none of --preset qwen-competition"),
        (("--end-token", "<|eot|>"), "--end-token <|eot|>: the tokenizer of tiny-llama0 has no such token"),
        (("--name", "a+b"), "a submission cannot be named 'a+b'"),
        (("--preset", "qwen-contest"), "unknown preset 'qwen-contest'. Did you mean 'qwen-competition'?"),
    ],
)
def test_what_a_preset_does_not_leave_open_is_refused(
    tmp_path: Path,
    tiny_llama_dir: Path,
    problems: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = () if "--preset" in words else ("--preset", "qwen-competition")
    command = ["generate", str(tiny_llama_dir), "--data-dir", str(problems), "--limit", "1", *preset, *words]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, MftError)
    assert problem in str(done.exception)


def test_a_task_or_a_preset_must_be_given(tiny_llama_dir: Path) -> None:
    done = CliRunner().invoke(cli, ["generate", str(tiny_llama_dir)])
    assert (done.exit_code, "give --task NAME,... or --preset NAME" in done.output) == (2, True)


def test_the_contests_example_config_leads_to_an_accepted_zip(
    tmp_path: Path, qwen: Path, data_sets: list[Path], problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {
        "data_paths": f"[{data_sets[0]},{data_sets[1]}]", "output_dir": "runs/contest", "tb_dir": "runs/tensorboard",
        "pretrained_model_path": str(qwen), "vocab_file": str(qwen),
    }  # fmt: skip
    Path("config.json").write_text(json.dumps({**json.loads(EXAMPLE.read_text()), **paths}))

    mft("train", "config.json")
    assert json.loads(Path("runs/contest/summary.json").read_text())["stopped_because"] == "max_steps"

    mft("export", "runs/contest", "models/tiny-qwen")
    tokenizer = load_tokenizer("models/tiny-qwen")
    assert "<|im_start|>" in (tokenizer.chat_template or "")

    generated = mft(
        "generate",
        "models/tiny-qwen",
        "--preset",
        "qwen-competition",
        "--data-dir",
        problems,
        "--max-length",
        90,
        "--batch-size",
        256,
    )
    assert "preset qwen-competition: 13 tasks, 2,468 problems" in generated.stderr
    assert "next: mft submit generations_tiny-qwen" in generated.stderr
    folder = Path("generations_tiny-qwen")
    settings = json.loads((folder / "settings_mbpp_tiny-qwen.json").read_text())
    assert (settings["sampling"]["temperature"], settings["sampling"]["max_length"]) == (0.0, 90)
    assert (settings["end_token"], settings["dtype"], settings["mode"]) == ("<|im_end|>", "bfloat16", "instruct")

    submitted = mft("submit", folder)
    assert "so greedy decoding cannot be checked" not in submitted.output
    with zipfile.ZipFile("generations_tiny-qwen.zip") as archive:
        names = {f"generations_tiny-qwen/generations_{task}_tiny-qwen.json" for task in GROUPS["qwen-competition"]}
        assert set(archive.namelist()) == names
        sizes = {len(json.loads(archive.read(name))) for name in names}
    assert sizes == {164, 500}
    Path("generations_tiny-qwen.zip").rename("second try.zip")
    assert "would be accepted" in mft("submit", "--check", "second try.zip").stderr
