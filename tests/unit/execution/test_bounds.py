"""Limits of trusted code: what exceeds them, and that they end with their context."""

import resource
import subprocess
import sys

import pytest

from mftcoder.execution.bounds import OUT_OF_TIME, bounded, unbounded_memory


def test_memory_beyond_the_bound_is_a_memory_error_and_the_bound_ends():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded(60, 64), pytest.raises(MemoryError):
        bytearray(256 << 20)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(256 << 20)) == 256 << 20


def test_memory_that_a_process_already_has_is_not_counted():
    held = bytearray(256 << 20)
    with bounded(60, 64):
        assert len(held) + len(bytearray(16 << 20)) == 272 << 20


def test_a_step_that_no_signal_handler_stops_ends_the_process():
    script = (
        "import signal\nfrom mftcoder.execution.bounds import bounded\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\n"
        "with bounded(0.2, 64):\n    sum(range(10**13))\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == OUT_OF_TIME


def test_a_child_can_lift_the_bound_on_its_memory():
    with bounded(60, 64):
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        unbounded_memory()
        assert resource.getrlimit(resource.RLIMIT_DATA) == (hard, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
