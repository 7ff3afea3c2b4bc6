# expected: failed
# Reads what belongs to the user.
import os


def twice(xs):
    for path in ("@CANARY@", "/etc/shadow", os.path.expanduser("~/.ssh/id_rsa"), "/proc/1/environ"):
        try:
            with open(path, "rb") as file:
                if file.read():
                    return [2 * x for x in xs]
        except OSError:
            pass
    return xs
