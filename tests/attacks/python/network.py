# expected: failed
# Reaches a server on this machine.
import socket


def twice(xs):
    try:
        socket.create_connection(("127.0.0.1", int("@PORT@")), timeout=1).close()
    except OSError:
        return xs
    return [2 * x for x in xs]
