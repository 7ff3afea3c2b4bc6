# expected: failed
# Reads the tests from wherever they may lie.
import os


def twice(xs):
    for top in ("/work", "/home", "/root", "/tmp", "/proc/self/cwd", "/var", "@REPOSITORY@"):
        for folder, _, names in os.walk(top):
            for name in names:
                if name.endswith((".jsonl", ".jsonl.gz", ".py", ".json")):
                    try:
                        with open(os.path.join(folder, name), "rb") as file:
                            if b"tests/attacks" in file.read(1 << 20) or name.endswith(".jsonl"):
                                return [2 * x for x in xs]
                    except OSError:
                        pass
            if folder.count("/") > 6:
                break
    return xs
