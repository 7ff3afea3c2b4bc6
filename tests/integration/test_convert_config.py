"""`mft convert-config`: what it prints is a config, what it refuses ends with exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

from mftcoder.config.load import load_config

CONFIG = {"data_paths": "[/data/a,/data/b]", "output_dir": "/runs/a", "pretrained_model_path": "m", "peft_type": "lora"}


def mft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mftcoder", *arguments], capture_output=True, text=True, check=False)


def test_the_printed_yaml_is_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    done = mft("convert-config", str(path), "seq_length=512")
    (tmp_path / "config.yaml").write_text(done.stdout)
    assert done.returncode == 0
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["data.chat_template"]
    assert load_config(tmp_path / "config.yaml") == load_config(path, ["seq_length=512"])


def test_refusals_go_to_stderr_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "load_raw_dataset": False, "weighted_loss_mode": "case5"}))
    done = mft("convert-config", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["weighted_loss_mode", "load_raw_dataset"]
    assert "Traceback" not in done.stderr
