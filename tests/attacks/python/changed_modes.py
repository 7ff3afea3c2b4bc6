# expected: failed
# Changes the mode, the times and the attributes of a file of the user's.
import os

CANARY = "@CANARY@"
TRICKS = (
    lambda: os.chmod(CANARY, 0o777),
    lambda: os.utime(CANARY, (1, 1)),
    lambda: os.setxattr(CANARY, "user.mft", b"1"),
    lambda: os.chown(CANARY, os.getuid(), 4711),
)


def twice(xs):
    before = os.stat(CANARY)
    for trick in TRICKS:
        try:
            trick()
        except OSError:
            pass
    after = os.stat(CANARY)
    seen = ("st_mode", "st_mtime", "st_gid", "st_ctime")
    return xs if all(getattr(before, name) == getattr(after, name) for name in seen) else [2 * x for x in xs]
