# expected: failed
# Kills its process group and session, which a harness without care shares.
import os
import signal

for kill in (lambda: os.kill(0, signal.SIGKILL), lambda: os.killpg(0, signal.SIGKILL), lambda: os.killpg(os.getpgid(0), 9)):
    try:
        kill()
    except OSError:
        pass


def twice(xs):
    return xs
