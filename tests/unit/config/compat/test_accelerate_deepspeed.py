"""The DeepSpeed flags of accelerate choose the backend. Flags that no backend supports are refused."""

import pytest

from mftcoder.config.compat.accelerate_deepspeed import deepspeed_backend
from mftcoder.config.compat.mftcoder_json import convert
from mftcoder.config.load import parse_config
from mftcoder.errors import ConfigError
from tests.unit.config.compat.test_mftcoder_json import EXAMPLE

PREFIX = "ACCELERATE_DEEPSPEED_"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, ("deepspeed_zero2", "none")),
        ({"ZERO_STAGE": "3"}, ("deepspeed_zero3", "none")),
        ({"ZERO_STAGE": "1", "OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, ("deepspeed_zero2", "optimizer")),
        ({"ZERO_STAGE": "2", "OFFLOAD_OPTIMIZER_DEVICE": "none"}, ("deepspeed_zero2", "none")),
        ({"ZERO_STAGE": "3", "OFFLOAD_PARAM_DEVICE": "cpu"}, ("deepspeed_zero3", "all")),
        ({"ZERO_STAGE": "0", "OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, ("ddp", "none")),
    ],
)
def test_the_published_deepspeed_run_takes_the_stage_that_accelerate_was_told(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], expected: tuple[str, str]
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(PREFIX + name, value)
    nested = convert({**EXAMPLE, "distributed_type": "DeepSpeed"}, origin="x.json").nested
    backend = parse_config(nested, origin="x.json").backend
    assert (backend.name, backend.offload) == expected


def test_what_no_backend_does_is_refused_by_the_flags_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "ZERO_STAGE", "4")
    monkeypatch.setenv(PREFIX + "OFFLOAD_PARAM_DEVICE", "nvme")
    with pytest.raises(ConfigError, match=r"--offload_param_device(.|\n)*--zero_stage"):
        deepspeed_backend()
    monkeypatch.setenv(PREFIX + "CONFIG_FILE", "ds.json")
    with pytest.raises(ConfigError, match="--deepspeed_config_file"):
        deepspeed_backend()
