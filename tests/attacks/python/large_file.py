# expected: failed
# One file that fills the disk.
def twice(xs):
    with open("/tmp/large", "wb") as file:
        for _ in range(1 << 12):
            file.write(bytes(1 << 20))
    return [2 * x for x in xs]
