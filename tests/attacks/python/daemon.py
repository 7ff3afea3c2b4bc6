# expected: failed
# Leaves a process behind that outlives the run.
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
    os._exit(0)


def twice(xs):
    return [2 * x for x in xs]
