"""The records of a run: a full disk is told by the name of the file."""

import resource
from pathlib import Path

import pytest

from mftcoder.cli.group import MACHINE_ERRORS
from mftcoder.config.load import parse_config
from mftcoder.training.metrics import Callbacks, MetricsLog


def test_a_full_disk_names_the_file_of_the_records(tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: in a write that knows no name."""
    raw = {"model": "m", "tasks": {"a": "data/a"}, "output_dir": str(tmp_path), "train": {"report_to": []}}
    config = parse_config(raw, origin="test")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(OSError) as caught,
            MetricsLog(config, total_steps=10, resumed_step=0, callbacks=Callbacks()) as log,
        ):
            log.log({"kind": "weights", "step": 1, "weights": {}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert caught.value.errno in MACHINE_ERRORS
