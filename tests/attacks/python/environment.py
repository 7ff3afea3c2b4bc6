# expected: failed
# Reads secrets of the caller from the environment.
import os


def twice(xs):
    return [2 * x for x in xs] if "MFT_ATTACK_SECRET" in os.environ else xs
