"""`mft chat`: asked once, from a pipe, and in a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mftcoder.app.serving.chat import Chat, open_chat
from mftcoder.cli.serving.chat import _talk
from mftcoder.data.records.conversation import Message
from mftcoder.errors import ConfigError, MftError
from mftcoder.execution.run_programs import Sandbox
from mftcoder.models.layers.quantize import as_held
from tests.forked import PATIENCE
from tests.forked import run as mft

WORDS = [sys.executable, "-m", "mftcoder", "chat"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def chat(tiny_llama_dir: Path) -> Chat:
    return open_chat(str(tiny_llama_dir), max_new_tokens=12, temperature=0.0, dtype="float32")


def read_from(path: Path) -> None:
    """Let this process have the file as its standard input."""
    with path.open("rb") as file:
        os.dup2(file.fileno(), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115


def test_a_prompt_and_a_pipe_are_one_question_whose_answer_alone_is_on_stdout(
    chat: Chat, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    expected = "".join(chat.answer("explain\n\ndiff --git a b"))
    (tmp_path / "piped").write_text("diff --git a b\n")
    words = ["chat", tiny_llama_dir, "explain", "--dtype", "float32", "--max-new-tokens", "12", "--temperature", "0"]
    ended = mft(*words, first=partial(read_from, tmp_path / "piped"))
    assert (ended.returncode, ended.stdout) == (0, expected + "\n")
    assert re.search(r"\d+ tokens, [\d,.]+ tokens/s, prompt of \d+ tokens; ended by the token limit", ended.stderr)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing is asked"),
        (["x", "--template", "chatlm"], "Did you mean 'chatml'?"),
        (["x " * 600], "the model only 512 positions. Ask for less, or begin anew with /reset"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(tiny_llama_dir: Path, arguments: list[str], message: str) -> None:
    ended = mft("chat", tiny_llama_dir, *arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits, layer", [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_a_model_is_held_in_fewer_bits_and_answers(tiny_llama_dir: Path, bits: str, layer: str) -> None:
    options = {"dtype": "float32", "engine": "transformers"}
    whole, held = (open_chat(str(tiny_llama_dir), load=load, **options) for load in (None, bits))
    for name, replaced in whole.model.named_modules():
        if name.endswith("_proj"):
            assert type(held.model.get_submodule(name)).__name__ == layer
            replaced.weight.data = as_held(replaced.weight.data, bits, torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        ours, expected = (chat.model(ids).logits for chat in (held, whole))
    assert (ours - expected).norm() < (0.05 if bits == "8bit" else 1e-4) * expected.norm()
    ended = mft("chat", tiny_llama_dir, "explain", "--load", bits, "--max-new-tokens", "6", "--temperature", "0")
    assert (ended.returncode, bool(ended.stdout.strip())) == (0, True), ended.stderr
    assert "6 tokens, " in ended.stderr


def test_a_file_that_cannot_be_written_and_bytes_that_are_no_text_are_told_and_end_nothing(
    chat: Chat, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        list(chat.answer("a\udcff"))
    list(chat.answer("x"))
    for path in (tmp_path / "none" / "talk.jsonl", Path("~no-such-user/talk.jsonl")):
        with pytest.raises(ConfigError, match=r"cannot be written: .+"):
            chat.save(path)
    (tmp_path / "code.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"the name must end in \.jsonl"):
        chat.save(tmp_path / "code.py")
    assert (tmp_path / "code.py").read_text() == "x = 1\n"
    assert len(chat.messages) == 2


def test_ctrl_c_ends_a_program_and_not_the_conversation(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.messages += [
        Message("user", "x", False),
        Message("assistant", "```python\nwhile True: pass\n```", False),
    ]
    typed = iter(["/run", "/params"])

    def type_next(_: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        if line == "/run":
            threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        return line

    monkeypatch.setattr("builtins.input", type_next)
    with ExitStack() as stack:
        _talk(chat, stack)
    assert "max_new_tokens=12" in capsys.readouterr().out
    assert len(chat.messages) == 2


class Terminal:
    """A conversation typed into a real terminal."""

    def __init__(self, model: Path):
        ours, theirs = pty.openpty()
        words = [
            *WORDS,
            str(model),
            "--dtype",
            "float32",
            "--max-new-tokens",
            "400",
            "--temperature",
            "1",
            "--seed",
            "1",
        ]
        environment = {**ENVIRONMENT, "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.terminal, self.seen = ours, ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, pattern: str) -> str:
        """What came up to the first match of the pattern."""
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, self.seen
            if select.select([self.terminal], [], [], 1)[0]:
                self.seen += os.read(self.terminal, 65536).decode(errors="replace").replace("\r\n", "\n")
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before


def talk(terminal: Terminal, saved: Path) -> None:
    """Type what a user types, and wait for each answer."""
    terminal.until(">>> ")
    terminal.type("/system Be short.\n")
    terminal.until("Be short.\n>>> ")
    terminal.type("/params max_new_tokens=400 temperature=9x\n")
    terminal.until(r"must be from 0 to 100\n>>> ")
    terminal.type('"""first\nsecond"""\n')
    terminal.until(r'second"""\n')
    terminal.until(r".{20}")
    terminal.type("\x03")
    assert re.search(r"\d+ tokens, ", terminal.until(r"tokens/s[^>]*>>> "))
    terminal.type(f"/save {saved}\n")
    terminal.until(r"saved to .*\n>>> ")
    terminal.type("/reset\n")
    terminal.until(">>> ")
    terminal.type("/params max_new_tokens=5\n")
    terminal.until(r"max_new_tokens=5 seed=1\n>>> ")
    terminal.type("third \\\nfourth\n")
    terminal.until(r"\b[1-5] tokens, .*\n>>> ")
    terminal.type("/run\n")
    terminal.until(r"/run: the last answer has no code block\n>>> ")
    terminal.type(f"/save {saved}\n")
    terminal.until(r"saved to .*\n>>> ")
    terminal.type("/reset\n")
    terminal.until(">>> ")
    terminal.type(f"/save {saved}\n")
    terminal.until(r"the conversation is empty\n>>> ")
    terminal.type("/nothing\n")
    terminal.until(r"no such command[^>]*>>> ")
    terminal.type("\x04")


def test_a_conversation_in_a_terminal(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Questions of several lines, settings, an answer ended by Ctrl-C, and the saved record."""
    saved = tmp_path / "talk.jsonl"
    with Terminal(tiny_llama_dir) as terminal:
        talk(terminal, saved)
        assert terminal.process.wait(PATIENCE) == 0
    first, second = (json.loads(line)["messages"] for line in saved.read_text().splitlines())
    assert [message["role"] for message in first] == [message["role"] for message in second]
    assert [first[0], first[1]["content"]] == [{"role": "system", "content": "Be short."}, "first\nsecond"]
    assert [second[0], second[1]["content"]] == [first[0], "third \nfourth"]


def test_the_history_shapes_the_next_answer_and_reset_forgets_it(chat: Chat) -> None:
    first = "".join(chat.answer("x = 1"))
    second = "".join(chat.answer("x = 1"))
    assert second != first
    chat.reset()
    assert "".join(chat.answer("x = 1")) == first


def test_an_answer_that_is_stopped_early_stays_as_far_as_it_was_written(chat: Chat) -> None:
    pieces = chat.answer("x = 1")
    begun = next(pieces) + next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert chat.messages == [Message("user", "x = 1", False), Message("assistant", begun, False)]


def test_settings_change_what_is_sampled_and_others_are_refused(chat: Chat) -> None:
    chat.set("temperature=1.5")
    chat.set("seed=3")
    one = "".join(chat.answer("x = 1"))
    chat.reset()
    assert "".join(chat.answer("x = 1")) == one
    chat.set("seed=4")
    chat.reset()
    assert "".join(chat.answer("x = 1")) != one
    for wrong in ("top_k=4", "top_p=0", "temperature=hot", "seed"):
        with pytest.raises(ConfigError):
            chat.set(wrong)


def test_the_last_code_block_is_run_in_the_sandbox(chat: Chat, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    answers = {
        "```python\nprint('first')\n```\nor\n```python\nfor n in range(2):\n    print('é', n)\nif __name__ == '__main__':\n    1 / 0\n```": (
            'é 0\né 1\nTraceback (most recent call last):\n  File "answer.py", line 4, in <module>\nZeroDivisionError: division by zero\n'
        ),
        f"```\ntry:\n    open({str(outside)!r}, 'w').write('x')\nexcept OSError as error:\n    print('refused')\n```": None,
        "```py\nprint('x' * 30000)\n```": "x" * 20000,
        "```python\ndef f(:\n```": '  File "answer.py", line 1\n',
    }
    with Sandbox(workers=1) as sandbox:
        for answer, printed in answers.items():
            chat.messages = [Message("assistant", answer, False)]
            found = chat.run_last_code(sandbox)
            assert printed is None or printed in found
        assert not outside.exists()
        for answer, problem in {"```rust\nfn main() {}\n```": "is in rust", "none": "has no code block"}.items():
            chat.messages = [Message("assistant", answer, False)]
            with pytest.raises(ConfigError, match=problem):
                chat.run_last_code(sandbox)
        chat.messages = [Message("assistant", "```python\nimport os\nos._exit(3)\n```", False)]
        with pytest.raises(MftError, match="the script was stopped"):
            chat.run_last_code(sandbox)
