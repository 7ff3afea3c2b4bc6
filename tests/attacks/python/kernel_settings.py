# expected: failed
# Writes settings of the kernel, and enlarges the file system in memory that holds its scratch folder.
import ctypes
import glob
import os

libc = ctypes.CDLL(None, use_errno=True)
FSPICK, FSCONFIG = 433, 431


def reached():
    for path in glob.glob("/proc/sys/**", recursive=True):
        try:
            with open(path, "r+") as file:
                value = file.read()
                file.seek(0)
                file.write(value)
            return True
        except (OSError, ValueError):
            pass
    for folder in (b"/tmp", b"/scratch", os.getcwd().encode()):
        context = libc.syscall(FSPICK, -100, folder, 0)
        if context >= 0 and libc.syscall(FSCONFIG, context, 1, b"size", b"8g", 0) == 0:
            return libc.syscall(FSCONFIG, context, 7, None, None, 0) == 0
        if libc.mount(b"none", folder, None, 32, b"size=8g") == 0:
            return True
    return False


def twice(xs):
    return [2 * x for x in xs] if reached() else xs
