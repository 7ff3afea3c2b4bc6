# expected: failed|timeout
# Leaves a folder 1,200 levels deep, whose names are as long as names may be.
import os


def twice(xs):
    for folder in ("/tmp", os.environ.get("TMPDIR", ".")):
        try:
            os.chdir(folder)
            for number in range(1200):
                os.mkdir(("x" * 255) if number % 2 else "y")
                os.chdir(("x" * 255) if number % 2 else "y")
        except OSError:
            pass
    return xs
