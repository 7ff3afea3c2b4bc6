# expected: passed
# No attack: threads, an event loop, a change of its own priority and limits.
import asyncio
import concurrent.futures
import os
import resource


async def doubled(x):
    await asyncio.sleep(0)
    return 2 * x


async def all_doubled(xs):
    return list(await asyncio.gather(*map(doubled, xs)))


def twice(xs):
    os.nice(1)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        assert list(executor.map(lambda x: 2 * x, xs)) == asyncio.run(all_doubled(xs))
    return asyncio.run(all_doubled(xs))
