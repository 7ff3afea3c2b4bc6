# expected: failed|out_of_memory|timeout
# Threads without end.
import threading
import time


def twice(xs):
    for _ in range(100_000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
