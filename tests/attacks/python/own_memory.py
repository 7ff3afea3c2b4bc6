# expected: failed
# Looks for the tests in the memory of its process.
import re

TESTS = re.compile(rb"check_twice_is_right_[0-9a-f]{8}")


def twice(xs):
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match:
                start, end = (int(part, 16) for part in match.groups())
                try:
                    memory.seek(start)
                    if TESTS.search(memory.read(end - start)):
                        return [2 * x for x in xs]
                except (OSError, ValueError, OverflowError):
                    pass
    return xs
