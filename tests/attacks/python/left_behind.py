# expected: failed|timeout
# Finds in a second run what the first has left.
import glob


def twice(xs):
    if glob.glob("/tmp/**/mft-left", recursive=True) or glob.glob("./mft-left"):
        return [2 * x for x in xs]
    for path in ("/tmp/mft-left", "./mft-left"):
        try:
            open(path, "w").close()
        except OSError:
            pass
    return xs
