"""The confinement of a program, tested from inside: real programs that a real zygote starts, at both levels.

No program here does harm where a wall is missing: each touches files of its own test only.
"""

import contextlib
import json
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mftcoder.execution.isolation import kernel
from mftcoder.execution.isolation.confinement import Confinement, readable_paths
from mftcoder.execution.python.zygote_handle import RunEnd, SlotSettings, ZygoteHandle, ZygoteLostError
from mftcoder.execution.sandbox import Limits

pytestmark = pytest.mark.skipif(not kernel.is_supported(), reason="needs Linux on x86_64 or aarch64")

_PATIENCE = 20
# Each program leaves what it found in `found`; what it may not do leaves the error's name.
_FRAME = """
import json, os, sys
def tried(action):
    try:
        return action() or "done"
    except OSError as error:
        return type(error).__name__
{program}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Ended:
    """The output of a program, and how it ended."""

    found: Any
    end: RunEnd


@dataclass(frozen=True)
class Slot:
    """One zygote and its folder."""

    zygote: ZygoteHandle
    folder: Path

    def run(self, program: str, limits: Limits | None = None, *, may_fork: bool = False) -> Ended:
        """Run Python source as a command, with its output in a pipe."""
        command = [sys.executable, "-I", "-S", "-c", _FRAME.format(program=program)]
        reader, writer = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        limits = limits or Limits()
        with open(reader, "rb") as output:  # noqa: PTH123
            self.zygote.execute(
                command, [nothing, writer, nothing], limits, seconds=limits.seconds, environment={}, may_fork=may_fork
            )
            os.close(writer)
            os.close(nothing)
            # Its own clock counts processor time only: a program that waits for ever would hang the test.
            text = output.readline() if select.select([output], [], [], _PATIENCE)[0] else b""
        return Ended(json.loads(text) if text else None, self.zygote.end(patience=_PATIENCE))

    def covers(self, word: str) -> bool:
        """True if the level covers this."""
        return any(word in covered for covered in self.zygote.covers)


@contextlib.contextmanager
def _slot(level: str) -> Iterator[Slot]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            zygote = ZygoteHandle(SlotSettings(level, folder, None, readable_paths()))
        except ZygoteLostError as lost:
            pytest.skip(f"no level {level} here: {lost}")
        with contextlib.closing(zygote):
            yield Slot(zygote, Path(folder))


@pytest.fixture(scope="module")
def process_slot() -> Iterator[Slot]:
    """Programs that run as this user, confined by Landlock."""
    with _slot("process") as slot:
        if not slot.covers("Landlock"):
            pytest.skip("no Landlock here")
        yield slot


@pytest.fixture(scope="module")
def world_slot() -> Iterator[Slot]:
    """Programs in namespaces of their own."""
    with _slot("namespaces") as slot:
        yield slot


@pytest.fixture(params=["process_slot", "world_slot"])
def slot(request: pytest.FixtureRequest) -> Slot:
    """Each level in turn."""
    made: Slot = request.getfixturevalue(request.param)
    return made


def test_a_program_reads_and_writes_in_its_scratch_folder(slot: Slot) -> None:
    program = "open('a', 'w').write('text')\nos.mkdir('b')\nos.rename('a', 'b/c')\nfound = open('b/c').read()"
    assert slot.run(program).found == "text"


def test_the_next_program_finds_nothing_of_the_one_before(slot: Slot) -> None:
    assert slot.run("open('left', 'w').close()\nfound = os.listdir()").found == ["left"]
    assert slot.run("found = os.listdir()").found == []


@pytest.mark.parametrize("name", ["secret", "secret-folder/secret"])
def test_the_users_files_cannot_be_read(slot: Slot, name: str, tmp_path: Path) -> None:
    secret = tmp_path / name
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("secret")
    found = slot.run(f"found = tried(lambda: open({str(secret)!r}).read())").found
    assert found in ("PermissionError", "FileNotFoundError")


@pytest.mark.parametrize(
    "action",
    [
        "open({path!r}, 'w')",
        "os.truncate({path!r}, 0)",
        "os.unlink({path!r})",
        "os.rename({path!r}, {path!r} + 'x')",
        "os.link({path!r}, 'mine')",
        "os.mkdir({path!r} + 'x')",
        "os.symlink('a', {path!r} + 'x')",
    ],
)
def test_the_users_files_cannot_be_changed(slot: Slot, action: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("as it was")
    found = slot.run(f"found = tried(lambda: {action.format(path=str(file))})").found
    assert found.endswith("Error")
    assert file.read_text() == "as it was" and list(tmp_path.iterdir()) == [file]


def test_modes_and_times_of_the_users_files_do_not_change(slot: Slot, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    before = file.stat()
    path = str(file)
    slot.run(f"found = [tried(lambda: os.chmod({path!r}, 0o777)), tried(lambda: os.utime({path!r}, (0, 0)))]")
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_the_interpreter_can_be_read_but_not_written(slot: Slot) -> None:
    """It opens for writing and writes nothing, so that the program does no harm if the confinement fails."""
    program = "name = json.__file__\nfound = [bool(open(name).read()), tried(lambda: os.open(name, os.O_WRONLY))]"
    read, written = slot.run(program).found
    assert read and written in ("PermissionError", "OSError")


@pytest.mark.parametrize("kind", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"])
def test_there_is_no_socket_to_the_network_or_to_other_programs(slot: Slot, kind: str) -> None:
    program = (
        f"import socket\nfound = tried(lambda: socket.socket(socket.{kind}, socket.SOCK_RAW if 'PACKET' in '{kind}'"
    )
    assert slot.run(f"{program} else socket.SOCK_DGRAM).close())").found == "PermissionError"


def test_a_program_has_no_capability_and_cannot_gain_one(slot: Slot) -> None:
    """`capget` and `prctl(PR_GET_NO_NEW_PRIVS)`."""
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None)\nhead, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()\n"
        "assert not libc.capget(head, sets)\nfound = [list(sets), libc.prctl(39, 0, 0, 0, 0)]"
    )
    capabilities, no_new_privileges = slot.run(program).found
    assert capabilities == [0] * 6 and no_new_privileges == 1


def test_the_limits_of_a_run_are_its_own_and_cannot_be_raised(slot: Slot) -> None:
    names = "CPU", "DATA", "FSIZE", "NOFILE", "CORE"
    program = (
        f"import resource\nnames = {names!r}\nkinds = [getattr(resource, 'RLIMIT_' + name) for name in names]\n"
        "def more(kind):\n    resource.setrlimit(kind, (1 << 40, 1 << 40))\n"
        "def refused(kind):\n    try:\n        more(kind)\n    except (OSError, ValueError):\n        return True\n"
        "found = [[resource.getrlimit(kind), refused(kind)] for kind in kinds]"
    )
    for seconds, memory_mb, file_mb in ((2.5, 200, 3), (7.0, 400, 1)):
        found = slot.run(program, Limits(seconds=seconds, memory_mb=memory_mb, file_mb=file_mb)).found
        wanted = (int(seconds + 0.5), memory_mb << 20, file_mb << 20, 512, 0)
        assert found == [[[value, value], True] for value in wanted]


def test_a_program_starts_a_process_only_with_permission(slot: Slot) -> None:
    program = (
        "found = tried(lambda: os.waitpid(os.posix_spawn(sys.executable, ['python', '-S', '-c', ''], {}), 0)[1] == 0)"
    )
    assert slot.run(program).found == "BlockingIOError"  # as where a user has too many
    assert slot.run(program, may_fork=True).found is True


_HOLD = """
def hold(megabytes):
    kept = bytearray(megabytes << 20)
    kept[::4096] = b"x" * len(kept[::4096])
    os.write(ready, b".")
    os.close(ready)
    os.read(go, 1)
ready_end, ready = os.pipe()
go, go_end = os.pipe()
for _ in range({processes}):
    if os.fork() == 0:
        os.close(go_end)
        hold({megabytes})
        os._exit(0)
os.close(ready)
while os.read(ready_end, 1):
    pass
os.close(go_end)
found = sum(os.wait()[1] == 0 for _ in range({processes}))
"""


def test_all_processes_of_a_program_together_are_bounded_in_memory(slot: Slot) -> None:
    """Each is within the limit of one process; four together are not."""
    if not slot.covers("control group"):
        pytest.skip("no control groups here")
    within = slot.run(_HOLD.format(processes=4, megabytes=20), Limits(memory_mb=200), may_fork=True)
    beyond = slot.run(_HOLD.format(processes=4, megabytes=120), Limits(memory_mb=200), may_fork=True)
    assert within.found == 4 and not within.end.memory_killed
    assert beyond.found is None or beyond.found < 4


def test_a_process_that_left_its_session_is_killed_with_the_run(slot: Slot) -> None:
    """The pipe that it has open closes only when it ends."""
    reader, writer = os.pipe()
    program = (
        "import time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.close(1)\n        time.sleep(100)\n    os._exit(0)\nos.wait()\nfound = 'left'"
    )
    command = [sys.executable, "-I", "-S", "-c", _FRAME.format(program=program)]
    slot.zygote.execute(command, [writer] * 4, Limits(), seconds=5, environment={}, may_fork=True)
    os.close(writer)
    assert slot.zygote.end(patience=_PATIENCE).ended
    with open(reader, "rb", buffering=0) as held:  # noqa: PTH123
        assert json.loads(held.readline()) == "left"
        assert select.select([held], [], [], 60)[0] and not held.read()


def test_a_program_has_a_session_of_its_own(slot: Slot) -> None:
    """Otherwise `kill(0)` would reach the zygote."""
    assert slot.run("found = os.getsid(0) == os.getpid() == os.getpgrp()").found


def test_namespaces_show_only_the_programs_own_processes(world_slot: Slot) -> None:
    """Not even the zygote, which is process 1 of the namespaces and has the program's user and group."""
    program = "found = [[name for name in os.listdir('/proc') if name.isdigit()], os.readlink('/proc/self')]"
    processes, own = world_slot.run(program).found
    assert processes == [own]


def test_namespaces_show_no_folder_of_users_and_only_harmless_devices(world_slot: Slot) -> None:
    folders, devices = world_slot.run("found = [os.listdir('/'), sorted(os.listdir('/dev'))]").found
    on_the_way_to_readable = {Path(path).parts[1] for path in readable_paths()}
    assert not {"home", "srv", "mnt", "media", "boot", "sys", "var", "run"} & set(folders) - on_the_way_to_readable
    assert devices == ["full", "null", "random", "urandom", "zero"]


@pytest.mark.parametrize("folder", ["/", "/etc", "/usr", "/dev"])
def test_in_namespaces_only_the_scratch_folder_can_be_written(world_slot: Slot, folder: str) -> None:
    """A file without a name, which disappears at once if the confinement fails."""
    program = f"found = tried(lambda: os.open({folder!r}, os.O_TMPFILE | os.O_WRONLY))"
    assert world_slot.run(program).found in ("OSError", "PermissionError")
    assert world_slot.run(program.replace(repr(folder), "'.'")).found not in ("OSError", "PermissionError")


def test_the_kernels_settings_are_read_only(world_slot: Slot) -> None:
    name = "/proc/sys/kernel/hostname"
    assert world_slot.run(f"found = open({name!r}).read()").found == "sandbox\n"
    assert world_slot.run(f"found = tried(lambda: os.open({name!r}, os.O_WRONLY))").found in (
        "OSError",
        "PermissionError",
    )


def test_namespaces_have_no_network_except_their_own_loopback(world_slot: Slot) -> None:
    devices = world_slot.run("found = open('/proc/net/dev').read().splitlines()[2:]").found
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_a_level_lists_what_it_covers() -> None:
    with _slot("process") as process, _slot("namespaces") as world:
        assert process.covers("network (seccomp)") and not process.covers("network (none)")
        assert world.covers("network (none)") and not world.covers("Landlock")


@pytest.fixture
def walls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Confinement]:
    """`walls(limits, hard)`: ready for a program of these limits, where the caller's own hard limits are `hard`."""

    def make(limits: dict[str, Any], hard: int) -> Confinement:
        made = Confinement.__new__(Confinement)
        made.group, made.max_tasks = None, None
        monkeypatch.setattr("resource.getrlimit", lambda _: (0, hard))
        made.ready(limits)
        return made

    return make


def test_no_limit_is_above_the_callers_own(walls: Callable[..., Confinement]) -> None:
    """A process cannot raise its hard limits, so the program would not start."""
    limits = {"seconds": 1.2, "memory_mb": 1, "address_mb": 2, "file_mb": 1, "processes": 5}

    def values(of: Confinement) -> Sequence[int]:
        return [value for _, value in of._limits]

    assert values(walls(limits, -1)) == [2, 1 << 20, 2 << 20, 1 << 20, 0, 512, 5]
    assert values(walls(limits, 4)) == [2, 4, 4, 4, 0, 4, 4]
