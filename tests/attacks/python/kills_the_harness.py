# expected: failed
# Kills everything it may.
import os
import signal

for pid in (os.getppid(), -1, 1, 2, 3):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        try:
            os.kill(pid, number)
        except OSError:
            pass


def twice(xs):
    return xs
