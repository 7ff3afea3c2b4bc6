# expected: failed|out_of_memory|timeout
# Threads with the smallest of stacks, more than any limit of memory stops.
import threading
import time

threading.stack_size(32768)


def twice(xs):
    count = 0
    try:
        while count < 20_000:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    return [2 * x for x in xs] if count > 10_000 else xs
