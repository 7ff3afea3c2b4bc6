"""System call filters: what a program of the sandbox may not ask of the kernel.

Goes in: whether the program may start processes (compilers do, answers do not). Comes out: a filter the kernel accepts, put in
place for good by `install`. A list of refusals, not of permissions: a language runtime's next version must still start, and
the namespaces and Landlock carry what this list cannot know. Refused calls get an error, not a kill, so that honest code that
only probes (a socket for its host name, say) goes on.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable

from mftcoder.execution import kernel

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = (
    0,
    4,
    16,
)  # offsets in struct seccomp_data; arguments are 8 bytes, low half first

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); None where the call does not exist
_CALLS: dict[str, tuple[int | None, int | None]] = {
    # the network, and a way round this filter
    "socket": (41, 198), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    # memory that outlives a program or crosses into another
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # the machine
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "acct": (163, 89), "swapon": (167, 224), "reboot": (169, 142),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "personality": (135, 92), "ioperm": (173, None), "iopl": (172, None),
}  # fmt: skip
_SIGNALS: dict[str, tuple[int, int]] = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131)}
_NEW_PROCESS: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_PRCTL = (157, 167)
_X32 = 0x40000000  # x86_64 numbers with this bit are a second table of the same calls


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> bytes:
    return _step(_RETURN, _ERRNO | error)


def _refuse_calls(numbers: Iterable[int], error: int = errno.EPERM) -> bytes:
    return b"".join(_step(_EQUAL, number, 0, 1) + _refuse(error) for number in numbers)


def _refuse_unless_first_argument(number: int, value: int) -> bytes:
    """Refuse call `number` unless its first argument (low 32 bits) is `value`; the number is loaded again behind it."""
    return (
        _step(_EQUAL, number, 0, 4)
        + _step(_LOAD, _FIRST_ARGUMENT)
        + _step(_EQUAL, value, 1, 0)
        + _refuse(errno.EPERM)
        + _step(_LOAD, _NUMBER)
    )


def _refuse_first_argument(number: int, value: int) -> bytes:
    return (
        _step(_EQUAL, number, 0, 4)
        + _step(_LOAD, _FIRST_ARGUMENT)
        + _step(_EQUAL, value, 0, 1)
        + _refuse(errno.EPERM)
        + _step(_LOAD, _NUMBER)
    )


def _refuse_clone(number: int, *, may_fork: bool) -> bytes:
    """New namespaces never; without `may_fork` threads only."""
    namespaces = 0x7E020000  # CLONE_NEW* : NS, CGROUP, UTS, IPC, USER, PID, NET
    threads_only = b"" if may_fork else _step(_ANY_BIT, kernel.CLONE_THREAD, 1, 0) + _refuse(errno.EAGAIN)
    body = _step(_LOAD, _FIRST_ARGUMENT) + _step(_ANY_BIT, namespaces, 0, 1) + _refuse(errno.EPERM) + threads_only
    return _step(_EQUAL, number, 0, len(body) // 8 + 1) + body + _step(_LOAD, _NUMBER)


EVERYONE = -1
NOBODY = 0


def program(*, may_fork: bool, may_signal: int) -> bytes:
    """The filter. `may_signal` is the only process that may be signalled, or EVERYONE (in a process namespace), or NOBODY."""
    machine = platform.machine()
    column = ("x86_64", "aarch64").index(machine)
    refused = [row[column] for row in _CALLS.values()]
    if not may_fork:
        refused += [row[column] for row in _NEW_PROCESS.values()]
    steps = _step(_LOAD, _ARCHITECTURE) + _step(_EQUAL, _ARCHITECTURES[machine], 1, 0) + _refuse(errno.ENOSYS)
    steps += _step(_LOAD, _NUMBER)
    if machine == "x86_64":
        steps += _step(_ANY_BIT, _X32, 0, 1) + _refuse(errno.ENOSYS)
    steps += _refuse_calls([number for number in refused if number is not None])
    steps += _refuse_calls([_CLONE3[column]], errno.ENOSYS)  # its flags lie behind a pointer; libc falls back to clone
    steps += _refuse_clone(_CLONE[column], may_fork=may_fork)
    steps += _refuse_first_argument(_PRCTL[column], kernel.PR_SET_PDEATHSIG)
    if may_signal != EVERYONE:
        steps += b"".join(_refuse_unless_first_argument(row[column], may_signal) for row in _SIGNALS.values())
    return steps + _step(_RETURN, _ALLOW)


def install(steps: bytes) -> None:
    """Put the filter on this process and all it will start; `no_new_privileges` must have been called."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

    filter_program = Program(len(steps) // 8, steps)
    kernel.prctl(kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))
