"""The control group of a slot: which groups its start removes, and how it bounds all processes together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mftcoder.execution.isolation import cgroups
from mftcoder.execution.isolation.cgroups import Cgroup


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plain folders instead of the kernel's. The same rule holds: only an empty folder can be removed."""
    monkeypatch.setattr(cgroups, "_own_folder", lambda controller: tmp_path / (controller or "unified"))
    for name in ("unified", "memory", "pids"):
        (tmp_path / name).mkdir()
    return tmp_path


def group_of(process: int, parent: Path) -> list[Path]:
    folders = [parent / name / f"mft-{process}" for name in ("memory", "pids")]
    for folder in folders:
        folder.mkdir()
    return folders


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_starting_slot_leaves_the_empty_group_of_a_slot_that_starts_at_the_same_time(parent: Path) -> None:
    """Between making its group and joining it, a live slot has an empty group."""
    groups = group_of(os.getppid(), parent)
    Cgroup.create(max_processes=10)
    assert all(folder.is_dir() for folder in groups)


def test_a_starting_slot_removes_the_groups_that_dead_slots_left(parent: Path) -> None:
    groups = group_of(dead_process(), parent)
    Cgroup.create(max_processes=10)
    assert not any(folder.exists() for folder in groups)


def test_a_slot_that_got_the_process_id_of_a_dead_one_does_not_go_on_in_its_group(parent: Path) -> None:
    """Its kills would be counted as those of the new slot's programs."""
    before = [folder.stat().st_ino for folder in group_of(os.getpid(), parent)]
    cgroups._remove_stale()
    assert before and not list(parent.glob(f"*/mft-{os.getpid()}"))


def test_groups_of_other_programs_are_not_removed(parent: Path) -> None:
    others = [parent / "memory" / name for name in ("other", "mft-by-hand")]
    for folder in others:
        folder.mkdir()
    Cgroup.create(max_processes=10)
    assert all(folder.is_dir() for folder in others)


@pytest.fixture
def group(tmp_path: Path) -> Cgroup:
    """A group of version 1 with plain files: it has a limit for memory and one for memory plus swap."""
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    for name in (*names, "memory.oom_control"):
        (tmp_path / name).write_text("")
    limits = tuple(os.open(tmp_path / name, os.O_RDWR) for name in names)
    return Cgroup((tmp_path,), limits, os.open(tmp_path / "memory.oom_control", os.O_RDONLY))


def test_the_limit_of_memory_alone_never_exceeds_that_of_memory_and_swap(
    group: Cgroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "pwrite", lambda file, text, _: written.append((file, int(text) >> 20)))
    memory, with_swap = group.memory_limits
    for megabytes in (100, 300, 300, 50):
        group.limit_memory(megabytes)
    assert written == [(memory, 100), (with_swap, 100), (with_swap, 300), (memory, 300), (memory, 50), (with_swap, 50)]


def test_kills_are_counted_since_the_last_call(group: Cgroup, tmp_path: Path) -> None:
    events = tmp_path / "memory.oom_control"
    assert group.new_kills() == 0
    events.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert [group.new_kills(), group.new_kills()] == [2, 0]
    events.write_text("low 0\nhigh 0\noom 7\noom_kill 3\n")  # as version 2 writes it
    assert group.new_kills() == 1
