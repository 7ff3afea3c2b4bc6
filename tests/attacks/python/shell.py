# expected: failed
# Runs a program of the machine.
import os
import posix
import subprocess


def twice(xs):
    done = [os.system("true") == 0, posix.system("true") == 0]
    try:
        done.append(subprocess.run(["/bin/true"]).returncode == 0)
    except OSError:
        pass
    return [2 * x for x in xs] if any(done) else xs
