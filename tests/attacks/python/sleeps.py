# expected: timeout
# Waits for ever, deaf to every signal it can be deaf to.
import signal
import time

for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass


def twice(xs):
    while True:
        time.sleep(1000)
