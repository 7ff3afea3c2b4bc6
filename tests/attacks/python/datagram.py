# expected: failed
# Sends a datagram to a socket of another process, by a pair that needs no `socket` call.
import socket


def twice(xs):
    try:
        ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.sendto(b"mft", "\0mft-attack-datagram-@PORT@")
    except OSError:
        return xs
    return [2 * x for x in xs]
