# expected: failed
# Takes every right off its scratch folder and what lies in it, and tries to put a link in its place.
import os


def twice(xs):
    scratch = os.environ.get("TMPDIR", "/tmp")
    for action in (
        lambda: os.makedirs(f"{scratch}/a/b"),
        lambda: open(f"{scratch}/a/b/c", "w").close(),
        lambda: os.chmod(f"{scratch}/a/b", 0),
        lambda: os.chmod(f"{scratch}/a", 0),
        lambda: os.chmod(scratch, 0),
        lambda: os.chmod(os.path.dirname(scratch), 0),
        lambda: os.rename(scratch, scratch + "-away"),
        lambda: os.symlink("/usr", scratch),
        lambda: os.mkdir(os.path.dirname(scratch) + "/beside"),
    ):
        try:
            action()
        except OSError:
            pass
    return xs
