"""The command line answers at once and gives each kind of end its exit code."""

import importlib.util
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from mftcoder.cli import cli, main


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, mftcoder.cli; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.slow(reason="imports transformers anew, ten seconds on a busy core")
def test_a_model_without_lora_weights_is_used_without_peft() -> None:
    """peft imports bitsandbytes, and both import torch's compiler: a quarter of the start of a command."""
    verbs = ["training.train", "training.validate", "scoring.generate", "serving.chat", "results.export"]
    if importlib.util.find_spec("uvicorn"):  # of the extra `serve`
        verbs.append("serving.serve")
    late = ["peft", "bitsandbytes", "torch._inductor.compile_fx", "torch.nn.attention.varlen", "deepspeed"]
    imported = "".join(f"import mftcoder.app.{verb}\n" for verb in verbs)
    code = f"import sys\n{imported}print([m for m in {late} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_lists_the_commands_in_the_order_of_the_journey(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [line.split()[0] for line in main_help(capsys).partition("Commands:")[2].splitlines() if line.strip()]
    journey = ["validate", "prepare", "train", "export", "generate", "evaluate", "report"]
    assert [name for name in shown if name in journey] == journey


def main_help(capsys: pytest.CaptureFixture[str]) -> str:
    cli.main(["--help"], standalone_mode=False)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_command_shows_how_it_is_typed(name: str) -> None:
    command = cli.commands[name]
    shown = command.help or ""
    assert f"mft {name}" in shown, f"mft {name} --help has no example"


@pytest.mark.parametrize(
    "arguments", [["train", "/no/such.yaml"], ["validate", "/no/such.yaml"], ["nonsense"], ["train", "--nope"]]
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "run", "out", "--exam", "mini"], "--exam is for --quantize"),
        (
            ["export", "--verify", "out", "--quantize", "gguf:F16"],
            "--quantize writes a folder, and --verify only reads",
        ),
        (["export", "run", "out", "--quantize", "gguf:F16", "--no-compare"], "have no effect on --quantize"),
        (["chat", "model", "  "], "nothing is asked: give a PROMPT"),
        (["data", "mine", "--out", "out", "--tasks", ""], "Invalid value for '--tasks': is empty"),
        (["data", "verify", "a", "--out", "out", "--checks", ""], "Invalid value for '--checks': is empty"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO())
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="only Linux has /proc")
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel says of a new folder in /proc that it does not exist."""
    (tmp_path / "chat.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(SystemExit) as stop:
        main(["data", "filter", str(tmp_path / "chat.jsonl"), "--out", "/proc/filtered"])
    line = "error: /proc/.filtered.work: nothing can be written there. Choose another folder\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, line)


def test_a_file_that_is_missing_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug of ours keeps its traceback."""
    monkeypatch.setattr("mftcoder.app.data.mine.mine_data", lambda *_, **__: (tmp_path / "missing").read_text())
    with pytest.raises(FileNotFoundError):
        main(["data", "mine", str(tmp_path), "--out", str(tmp_path / "out")])


def test_a_command_that_lacks_torch_says_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("model: m\ntasks: {a: data/a}\noutput_dir: run\n")
    code = f"import sys; sys.modules['torch'] = None; from mftcoder.cli import main; main(['train', {str(config)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = "error: this command needs torch, which is not installed. Install it with: pip install 'mftcoder[train]'\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_a_terminal_without_a_character_gets_a_question_mark(tmp_path: Path) -> None:
    """An answer of a model may hold any character, and must not end `mft chat`."""
    code = "import sys, click; from mftcoder.cli import group, main; group.cli.callback = lambda: click.echo('\\N{BUG} é'); main(['doctor', '--help'])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    assert (run.returncode, run.stdout[:4].decode("latin-1")) == (0, "? é\n"), run.stderr.decode()
