# expected: failed
# Attaches to another process, or asks the kernel for what no answer needs.
import ctypes
import os


def twice(xs):
    libc = ctypes.CDLL(None)
    libc.ptrace.restype = ctypes.c_long
    attached = libc.ptrace(16, os.getppid(), 0, 0) == 0
    unshared = libc.unshare(0x10000000) == 0
    mounted = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0
    return [2 * x for x in xs] if attached or unshared or mounted else xs
