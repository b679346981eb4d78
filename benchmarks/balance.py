"""How evenly several routers that hear of each other only now and then share the load over replicas (rule T2, X24).

    python benchmarks/balance.py [--seconds 5] [--routers 1,2] [--replicas 2,4,16] [--clients 8,32]

Real router processes on a real NATS server, leases over gRPC, held for an exponential time. `over time` is the busiest
replica's requests in flight over the mean of all replicas, averaged over the run; `p50` and `p99` are of the moments.
Beside each: the same load with replicas drawn at random, which is what one gets without counting.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import random
from collections.abc import Iterator

import uvloop

from tests.support.balance import SAMPLE_SECONDS, Balance, Load, router_processes
from tests.support.nats_servers import started
from tests.support.yard import a_yard

HOLD_SECONDS = 0.2


def at_random(replicas: int, clients: int, seconds: float) -> Balance:
    """Each request on any replica: what chance does, simulated."""
    chance = random.Random(1)  # noqa: S311 - load, not a secret
    ends = [chance.expovariate(1 / HOLD_SECONDS) for _ in range(clients)]
    homes = [chance.randrange(replicas) for _ in range(clients)]
    totals, moments = [0] * replicas, []
    now = 0.0
    while now < seconds:
        now += SAMPLE_SECONDS
        for client, end in enumerate(ends):
            if end <= now:
                ends[client] = now + chance.expovariate(1 / HOLD_SECONDS)
                homes[client] = chance.randrange(replicas)
        counts = [homes.count(replica) for replica in range(replicas)]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        moments.append(max(counts) * replicas / clients)
    return Balance(max(totals) * replicas / sum(totals), moments, {})


async def measure(url: str, routers: int, replicas: int, clients: int, seconds: float) -> Balance:
    async with a_yard(url) as yard:
        nodes = [f"n{number}" for number in range(replicas)]
        await yard.model(nodes=nodes)
        await asyncio.gather(*[yard.ready(f"r-{node}", node=node) for node in nodes])
        async with router_processes(url, count=routers) as stubs:
            load = Load([f"r-{node}" for node in nodes], hold_seconds=HOLD_SECONDS)
            return await load.run(stubs, clients=clients // routers, seconds=seconds)


@contextlib.contextmanager
def a_server() -> Iterator[str]:
    with started(1) as servers:
        asyncio.run(servers.wait_ready())
        yield servers.url


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=5)
    for name, default in (("routers", "1,2"), ("replicas", "2,4,16"), ("clients", "32,64")):
        options.add_argument(f"--{name}", default=default, help="a list")
    given = options.parse_args()
    names = ("routers", "replicas", "clients")
    lists = {name: [int(each) for each in getattr(given, name).split(",")] for name in names}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; busiest / mean in flight")
    print(
        f"{'routers':>8}{'replicas':>10}{'clients':>9}{'over time':>11}{'p50':>7}{'p99':>7}   at random: over time, p50"
    )
    for replicas in lists["replicas"]:
        for clients in lists["clients"]:
            chance = at_random(replicas, clients, given.seconds)
            for routers in lists["routers"]:
                with a_server() as url:
                    got = uvloop.run(measure(url, routers, replicas, clients, given.seconds))
                print(
                    f"{routers:8}{replicas:10}{clients:9}{got.mean:11.3f}{got.moment(0.5):7.2f}{got.moment(0.99):7.2f}"
                    f"{chance.mean:14.3f}{chance.moment(0.5):7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
