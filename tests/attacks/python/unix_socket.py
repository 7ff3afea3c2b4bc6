# expected: failed
# Reaches an abstract socket of another process.
import socket


def twice(xs):
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect("\0mft-attack-@PORT@")
    except OSError:
        return xs
    return [2 * x for x in xs]
