"""System call filters (seccomp) for the programs of the sandbox.

The filter lists what is refused, not what is allowed, so that the next version of a language runtime still starts; namespaces and
Landlock cover what the list cannot know. A refused call returns an error and does not kill, so that code which only tries a call
goes on.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable

from mftcoder.execution.isolation import kernel

_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54  # BPF_LD|W|ABS, BPF_RET|K, BPF_ALU|AND|K
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45  # BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_JMP|JSET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes, low half first

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); None where the call does not exist
_CALLS: dict[str, tuple[int | None, int | None]] = {
    # the network, sockets of other programs, and a way around this filter
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "ioprio_set": (251, 30),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # memory that outlives a program, is shared with another, or is not counted
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # the machine
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "vhangup": (153, 58), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "personality": (135, 92), "ioperm": (173, None), "iopl": (172, None),
}  # fmt: skip
_FIRST_UNKNOWN = 468  # calls from here on are newer than this list; the filter reports that they do not exist
_SIGNALS: dict[str, tuple[int, int]] = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131)}
_NEW_PROCESS: dict[str, tuple[int | None, int | None]] = {"fork": (57, None), "vfork": (58, None)}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_PRCTL, _FCNTL, _IOCTL, _SOCKETPAIR = (157, 167), (72, 25), (16, 29), (53, 199)
# Calls that take the id of a process; 0 is the caller itself.
_OF_A_PROCESS: dict[str, tuple[int, int]] = {
    "prlimit64": (302, 261), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}  # fmt: skip
_SETPRIORITY = (141, 140)
# Calls that change the mode or the times of a file, for which no right to write is needed.
_MODES_AND_TIMES: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
_OWNERS_AND_ATTRIBUTES: dict[str, tuple[int | None, int | None]] = {
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466),
}  # fmt: skip
# Commands that make the kernel signal another process, or that block whoever opens a file.
_FILE_COMMANDS = {"F_SETOWN": 8, "F_SETSIG": 10, "F_SETOWN_EX": 15, "F_SETLEASE": 1024, "F_NOTIFY": 1026}
_DEVICE_COMMANDS = {
    "FIOSETOWN": 0x8901, "SIOCSPGRP": 0x8902, "TIOCSTI": 0x5412, "TIOCLINUX": 0x541C,
    "FS_IOC_SETFLAGS": 0x40086602, "FS_IOC32_SETFLAGS": 0x40046602, "FS_IOC_FSSETXATTR": 0x401C5820,
}  # fmt: skip
_PRIO_PROCESS, _AF_UNIX, _SOCK_TYPES = 0, 1, 0xF
_CONNECTED = (1, 5)  # SOCK_STREAM, SOCK_SEQPACKET; a datagram may be sent to any address
_X32 = 0x40000000  # x86_64 numbers with this bit are a second table of the same calls


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> bytes:
    return _step(_RETURN, _ERRNO | error)


def _refuse_calls(numbers: Iterable[int | None], error: int = errno.EPERM) -> bytes:
    return b"".join(_step(_EQUAL, number, 0, 1) + _refuse(error) for number in numbers if number is not None)


def _on_argument(number: int, index: int, body: bytes, mask: int | None = None) -> bytes:
    """Run `body` on the low half of argument `index` of call `number`, then load the call's number again."""
    load = _step(_LOAD, _ARGUMENTS + 8 * index) + (b"" if mask is None else _step(_AND, mask))
    inner = load + body + _step(_LOAD, _NUMBER)
    return _step(_EQUAL, number, 0, len(inner) // 8) + inner


def _refuse_unless(number: int, index: int, allowed: Iterable[int], mask: int | None = None) -> bytes:
    """Refuse call `number` unless its argument `index` is one of `allowed`."""
    values = sorted(set(allowed))
    checks = b"".join(_step(_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values))
    return _on_argument(number, index, checks + _refuse(errno.EPERM), mask)


def _refuse_if(number: int, index: int, refused: Iterable[int]) -> bytes:
    """Refuse call `number` if its argument `index` is one of `refused`."""
    return _on_argument(number, index, _refuse_calls(refused))


def _refuse_clone(number: int, *, may_fork: bool) -> bytes:
    """Refuse new namespaces; without `may_fork` also refuse processes, so that only threads are left."""
    namespaces = 0x7E020000  # CLONE_NEW* : NS, CGROUP, UTS, IPC, USER, PID, NET
    threads_only = b"" if may_fork else _step(_ANY_BIT, kernel.CLONE_THREAD, 1, 0) + _refuse(errno.EAGAIN)
    return _on_argument(number, 0, _step(_ANY_BIT, namespaces, 0, 1) + _refuse(errno.EPERM) + threads_only)


def program(*, may_fork: bool, protect_modes: bool, own_signals_only: bool) -> bytes:
    """The filter as a template for `for_process`.

    `protect_modes`: the program has the caller's user id, so it must not change the mode or the times of the user's files. Such a call
    reports success and does nothing; neither matters for the temporary files that the program may write. `own_signals_only`: the
    program may signal itself only; a process namespace makes that unnecessary.
    """
    machine = platform.machine()
    column = ("x86_64", "aarch64").index(machine)
    refused = [row[column] for row in (*_CALLS.values(), *(() if may_fork else _NEW_PROCESS.values()))]
    steps = _step(_LOAD, _ARCHITECTURE) + _step(_EQUAL, _ARCHITECTURES[machine], 1, 0) + _refuse(errno.ENOSYS)
    steps += _step(_LOAD, _NUMBER)
    if machine == "x86_64":
        steps += _step(_ANY_BIT, _X32, 0, 1) + _refuse(errno.ENOSYS)
    steps += _step(_AT_LEAST, _FIRST_UNKNOWN, 0, 1) + _refuse(errno.ENOSYS)
    steps += _refuse_calls(refused)
    steps += _refuse_calls(
        [_CLONE3[column]], errno.ENOSYS
    )  # a filter cannot read its flags, which lie behind a pointer; libc falls back to clone
    steps += _refuse_clone(_CLONE[column], may_fork=may_fork)
    steps += _refuse_if(_PRCTL[column], 0, [kernel.PR_SET_PDEATHSIG])
    steps += _refuse_if(_FCNTL[column], 1, _FILE_COMMANDS.values())
    steps += _refuse_if(_IOCTL[column], 1, _DEVICE_COMMANDS.values())
    steps += _refuse_unless(_SOCKETPAIR[column], 0, [_AF_UNIX])
    steps += _refuse_unless(_SOCKETPAIR[column], 1, _CONNECTED, _SOCK_TYPES)
    steps += b"".join(_refuse_unless(row[column], 0, [0, _SELF]) for row in _OF_A_PROCESS.values())
    steps += _refuse_unless(_SETPRIORITY[column], 0, [_PRIO_PROCESS]) + _refuse_unless(
        _SETPRIORITY[column], 1, [0, _SELF]
    )
    if protect_modes:
        steps += _refuse_calls([row[column] for row in _MODES_AND_TIMES.values()], _PRETENDED)
        steps += _refuse_calls([row[column] for row in _OWNERS_AND_ATTRIBUTES.values()])
    if own_signals_only:
        steps += b"".join(_refuse_unless(row[column], 0, [_SELF]) for row in _SIGNALS.values())
    return steps + _step(_RETURN, _ALLOW)


_PRETENDED = 0  # as an error number: the call does nothing and reports success
_SELF = 0x7FFFFFF1  # placeholder for the process's own id; no real id is that large


def for_process(steps: bytes, own_id: int) -> bytes:
    """The filter with its process's own id filled in."""
    return steps.replace(struct.pack("I", _SELF), struct.pack("I", own_id))


def install(steps: bytes) -> None:
    """Apply the filter to this process and all its future children. Call `no_new_privileges` first."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

    filter_program = Program(len(steps) // 8, steps)
    kernel.prctl(kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))
