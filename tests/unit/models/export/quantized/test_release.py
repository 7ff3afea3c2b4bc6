import math
from pathlib import Path

import pytest

from mftcoder.errors import ConfigError
from mftcoder.models.export.quantized.methods import METHODS, find_method
from mftcoder.models.export.quantized.release import Release
from mftcoder.models.export.quantized.texts import Measured


def release(after: float, allowed: float = 0.5) -> Release:
    measured = {"tests": Measured(1.0, 10, 2)}
    return Release(
        Path("q"), METHODS["gguf:Q4_0"], measured, {"tests": Measured(after, 10, 2)}, 1000, 250, allowed, ("q.gguf",)
    )


def test_a_loss_that_is_not_finite_or_rises_too_far_is_a_problem() -> None:
    assert release(1.5).problems() == []
    assert release(0.2).problems() == []
    assert "rises from 1.0000 to 1.5100, more than the 0.5" in release(1.51).problems()[0]
    assert release(math.nan).problems() == ["tests: its loss is nan after quantization"]
    assert release(math.inf).problems() == ["tests: its loss is inf after quantization"]


def test_the_table_and_the_json_say_the_same() -> None:
    told = release(1.25).as_json()
    assert told["losses"]["tests"] == {"before": 1.0, "after": 1.25, "tokens": 10, "texts": 2}
    assert "| loss of tests (10 tokens) | 1.0000 | 1.2500 | +0.2500 |" in release(1.25).table()
    assert "| weights on disk | 0.0 MB | 0.0 MB | 25% of it |" in release(1.25).table()


def test_fewer_bits_may_cost_more() -> None:
    allowed = {
        name: METHODS[name].allowed_rise
        for name in ("gguf:F16", "int8", "gguf:Q5_0", "gptq", "gguf:Q3_K_M", "gguf:Q2_K")
    }
    assert list(allowed.values()) == [0.02, 0.1, 0.25, 0.5, 1.0, 1.0]


def test_methods_are_found_in_any_case_and_near_misses_are_told() -> None:
    assert find_method("GGUF:q4_k_m") is METHODS["gguf:Q4_K_M"]
    with pytest.raises(ConfigError, match=r"unknown method 'gtpq'. Did you mean 'gptq'\?"):
        find_method("gtpq")
