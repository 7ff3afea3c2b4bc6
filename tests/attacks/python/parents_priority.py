# expected: failed
# Slows down the process that started it, and all others of the user.
import os


def tricks():
    parent = os.getppid() or -1
    yield lambda: os.setpriority(os.PRIO_PROCESS, parent, 19)
    yield lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(parent), 19)
    yield lambda: os.setpriority(os.PRIO_USER, 0, 18)
    yield lambda: os.sched_setscheduler(parent, os.SCHED_IDLE, os.sched_param(0))
    yield lambda: os.sched_setaffinity(parent, {0})


def twice(xs):
    reached = False
    for trick in tricks():
        try:
            trick()
            reached = True
        except OSError:
            pass
    return [2 * x for x in xs] if reached else xs
