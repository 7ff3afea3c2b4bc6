# expected: failed
# Writes outside of its folder.
import os


def twice(xs):
    for folder in ("@HOME@", "/root", "/etc", "/usr", "/var/tmp", "/dev/shm", "/"):
        try:
            with open(os.path.join(folder, "mft-attack"), "w"):
                return [2 * x for x in xs]
        except OSError:
            pass
    return xs
