"""Options that ZeRO does not support are refused before a weight is loaded, with an alternative; needs no DeepSpeed."""

import importlib.util
from typing import Any

import pytest

from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError
from mftcoder.training.backends.deepspeed import Zero2Backend, Zero3Backend


def run_with(**sections: Any) -> RunConfig:
    raw = {"model": "no-model", "tasks": {"a": "data/a"}, "output_dir": "out", "backend": {"device": "cpu"}}
    return parse_config({**raw, **sections}, origin="x.yaml")


def test_deepspeed_that_is_not_installed_is_named_with_the_backend_to_take_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for backend, otherwise in ((Zero2Backend, "ddp"), (Zero3Backend, "fsdp2")):
        config = run_with()
        with pytest.raises(ConfigError, match=f"not installed: pip install .* Or use {otherwise}"):
            backend(config.backend).check(config)


@pytest.mark.parametrize(
    "sections",
    [{"balancer": "gradnorm"}, {"train": {"torch_compile": True}}, {"backend": {"context_parallel_size": 2}}],
    ids=lambda sections: next(iter(sections)),
)
def test_options_that_zero_does_not_support_are_refused(sections: dict[str, Any]) -> None:
    config = run_with(**sections)
    with pytest.raises(ConfigError, match=r"deepspeed_zero3 does not offer. Use ddp"):
        Zero3Backend(config.backend).check(config)


@pytest.mark.parametrize(("name", "offload"), [("ddp", "optimizer"), ("deepspeed_zero2", "all")])
def test_a_backend_that_cannot_offload_says_which_can(name: str, offload: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot move '{offload}'.*Use (fsdp2 or )?deepspeed_zero"):
        run_with(backend={"name": name, "offload": offload})
