# expected: passed
# No attack: a program that signals itself, as one does that bounds its own time.
import os
import signal
import threading

hits = []
signal.signal(signal.SIGUSR1, lambda number, frame: hits.append(number))
signal.signal(signal.SIGALRM, lambda number, frame: hits.append(number))


def twice(xs):
    hits.clear()
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.05)  # again and again: the first may come before the pause
    while len(hits) < 4:
        signal.pause()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [2 * x for x in xs]
