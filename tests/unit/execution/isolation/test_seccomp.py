"""The system call filter, run by an interpreter of BPF: which calls are allowed, which are refused and how."""

import errno
import platform
import struct

import pytest

from mftcoder.execution.isolation import kernel, seccomp
from mftcoder.execution.isolation.seccomp import for_process, program

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="call numbers of x86_64")

X86_64, AARCH64, ALLOWED = 0xC000003E, 0xC00000B7, 0x7FFF0000
OWN_ID = 4321
READ, WRITE, SOCKET, SOCKETPAIR, CLONE, FORK, CLONE3, KILL, CHMOD, CHOWN = 0, 1, 41, 53, 56, 57, 435, 62, 90, 92
PRCTL, FCNTL, IOCTL, PRLIMIT, SETPRIORITY, MOUNT, PTRACE, MEMFD = 157, 72, 16, 302, 141, 165, 101, 319


def decide(steps: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """The kernel's decision about a call: classic BPF as in seccomp(2) and bpf(4)."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("iIQ6Q", number, architecture, 0, *padded)
    rows = [struct.unpack_from("HBBI", steps, offset) for offset in range(0, len(steps), 8)]
    place = accumulator = 0
    while True:
        code, if_true, if_false, value = rows[place]
        place += 1
        if code == 0x20:
            accumulator = struct.unpack_from("I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            place += if_true if holds else if_false


def filter_of(*, may_fork: bool = False, protect_modes: bool = False, own_signals_only: bool = False) -> bytes:
    steps = program(may_fork=may_fork, protect_modes=protect_modes, own_signals_only=own_signals_only)
    return for_process(steps, OWN_ID)


def refused(error: int) -> int:
    return 0x00050000 | error


@pytest.mark.parametrize("number", [READ, WRITE, 9, 12, 60, 231, 202, 257])
def test_calls_that_every_program_needs_are_allowed(number: int) -> None:
    """read, write, mmap, brk, exit, exit_group, futex, openat."""
    assert decide(filter_of(), number) == ALLOWED


@pytest.mark.parametrize("number", [SOCKET, PTRACE, MOUNT, MEMFD])
@pytest.mark.parametrize("may_fork", [False, True])
def test_the_network_other_processes_and_the_machine_are_refused_to_compilers_too(number: int, may_fork: bool) -> None:
    assert decide(filter_of(may_fork=may_fork), number) == refused(errno.EPERM)


def test_every_listed_call_is_refused_on_this_machine() -> None:
    steps = filter_of()
    for name, (number, _) in seccomp._CALLS.items():
        assert number is not None and decide(steps, number) == refused(errno.EPERM), name


def test_calls_of_another_architecture_or_table_are_refused() -> None:
    """There the same number is another call."""
    assert decide(filter_of(), READ, architecture=AARCH64) == refused(errno.ENOSYS)
    assert decide(filter_of(), READ | 0x40000000) == refused(errno.ENOSYS)


def test_calls_that_are_newer_than_the_list_do_not_exist() -> None:
    assert decide(filter_of(), 468) == decide(filter_of(), 999) == refused(errno.ENOSYS)


THREAD = kernel.CLONE_THREAD | 0x3D0F00  # what a C library asks for


@pytest.mark.parametrize("may_fork", [False, True])
def test_threads_may_always_start_and_processes_for_compilers_only(may_fork: bool) -> None:
    steps = filter_of(may_fork=may_fork)
    assert decide(steps, CLONE, THREAD) == ALLOWED
    assert decide(steps, CLONE, 17) == (ALLOWED if may_fork else refused(errno.EAGAIN))
    assert decide(steps, FORK) == (ALLOWED if may_fork else refused(errno.EPERM))
    assert decide(steps, CLONE3) == refused(errno.ENOSYS)  # its flags cannot be read; libraries fall back to clone


@pytest.mark.parametrize(
    "flag",
    [
        kernel.CLONE_NEWNS,
        kernel.CLONE_NEWUSER,
        kernel.CLONE_NEWPID,
        kernel.CLONE_NEWNET,
        kernel.CLONE_NEWIPC,
        0x02000000,
    ],
)
def test_no_new_namespaces_for_anyone(flag: int) -> None:
    assert decide(filter_of(may_fork=True), CLONE, flag | 17) == refused(errno.EPERM)
    assert decide(filter_of(), CLONE, flag | THREAD) == refused(errno.EPERM)


def test_a_program_may_change_limits_and_priority_of_itself_only() -> None:
    steps = filter_of()
    for number in (PRLIMIT, 142, 144, 203, 314):
        assert decide(steps, number, 0) == decide(steps, number, OWN_ID) == ALLOWED
        assert decide(steps, number, OWN_ID + 1) == decide(steps, number, 1) == refused(errno.EPERM)
    assert decide(steps, SETPRIORITY, 0, OWN_ID) == decide(steps, SETPRIORITY, 0, 0) == ALLOWED
    assert decide(steps, SETPRIORITY, 0, 1) == decide(steps, SETPRIORITY, 2, 0) == refused(errno.EPERM)


def test_without_a_process_namespace_a_program_may_signal_itself_only() -> None:
    for number in (KILL, 200, 234):
        assert decide(filter_of(own_signals_only=False), number, 1) == ALLOWED
        assert decide(filter_of(own_signals_only=True), number, OWN_ID) == ALLOWED
        assert decide(filter_of(own_signals_only=True), number, 1) == refused(errno.EPERM)
        assert decide(filter_of(own_signals_only=True), number, 0) == refused(errno.EPERM)  # the process group


def test_a_program_of_the_users_own_id_changes_no_mode_and_the_call_reports_success() -> None:
    assert decide(filter_of(protect_modes=True), CHMOD) == refused(0)
    assert decide(filter_of(protect_modes=True), CHOWN) == refused(errno.EPERM)
    assert decide(filter_of(protect_modes=False), CHMOD) == decide(filter_of(), CHOWN) == ALLOWED


def test_commands_that_send_signals_or_block_others_are_refused_and_others_are_allowed() -> None:
    steps = filter_of()
    assert decide(steps, FCNTL, 3, 8) == decide(steps, IOCTL, 0, 0x5412) == refused(errno.EPERM)  # F_SETOWN, TIOCSTI
    assert decide(steps, FCNTL, 3, 3) == decide(steps, IOCTL, 0, 0x5413) == ALLOWED  # F_GETFL, TIOCGWINSZ
    assert decide(steps, PRCTL, kernel.PR_SET_PDEATHSIG) == refused(errno.EPERM)
    assert decide(steps, PRCTL, 15) == ALLOWED  # PR_SET_NAME


def test_the_only_sockets_are_connected_pairs_of_unix_sockets() -> None:
    steps = filter_of()
    assert decide(steps, SOCKETPAIR, 1, 1) == decide(steps, SOCKETPAIR, 1, 5 | 0o2000000) == ALLOWED
    assert decide(steps, SOCKETPAIR, 1, 2) == decide(steps, SOCKETPAIR, 2, 1) == refused(errno.EPERM)
