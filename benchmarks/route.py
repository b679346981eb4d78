"""What a route decision costs in memory: one request routed and released, by the number of replicas.

    python benchmarks/route.py [--requests 20000]

Beside it the plain minimum over the definition (`choose`), which is what one would write first.
"""

import argparse
import asyncio
import os
import platform
import time
from collections.abc import Callable
from functools import partial

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.spec import Health
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.health import Healthy, Outcome
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.policy.affinity import PROMPT_BYTES_MAX, Affinities, Hint
from modelyard_services.policy.routing import Candidate, Ranking, choose
from modelyard_services.router.probes import Prober
from modelyard_services.router.router import Router
from tests.support.given import a_model, a_ready_replica, an_approved_node

SIZES = (4, 64, 256, 1_024)


async def healthy(_address: str, _health: Health) -> Outcome:
    return Healthy()


async def a_fleet(runtime: Runtime, size: int) -> None:
    """`size` nodes with a ready replica each."""
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: a_model())
    for number in range(size):
        node = f"n{number:04}"
        events: list[AnyEvent] = [*an_approved_node(node), *a_ready_replica(f"r-{number:04}", node=node)]
        await runtime.journal.commit(runtime.envelope(), partial(_decided, events))


def _decided(events: list[AnyEvent], _fleet: Fleet) -> list[AnyEvent]:
    return events


def microseconds(run: Callable[[], object], times: int) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - begun) / times * 1e6


async def measure(size: int, requests: int) -> dict[str, float]:
    async with in_memory("bench", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=5)
        await a_fleet(runtime, size)
        async with Router(runtime, prober=Prober(asked=healthy)) as router:
            await router.wait_ready(timeout_seconds=5)
            # Every replica probed once, and some in use, so that the order has something to decide.
            held = [await router.route("m") for _ in range(size + size // 2)]
            board = router._board  # noqa: SLF001 - the decision alone, without its lease
            candidates = board.candidates(held[0].model)
            model = held[0].model
            figures = {
                "decision": microseconds(lambda: board.best(model), requests),
                **affinity_figures(board.candidates(model), requests),
                "plain minimum": microseconds(lambda: choose(candidates), max(200, requests // size)),
            }
            begun = time.perf_counter()
            for _ in range(requests):
                router.release((await router.route("m")).lease)
            figures["route + release"] = (time.perf_counter() - begun) / requests * 1e6
            return figures


def affinity_figures(candidates: list[Candidate], requests: int) -> dict[str, float]:
    """The decision for a session, and for a prompt of 16 KiB whose beginning is known."""
    affinities, ranking, model = Affinities(Fleet()), Ranking(), candidates[0].model
    for candidate in candidates:
        ranking.put(candidate)
    prompt = Hint(prompt=b"p" * PROMPT_BYTES_MAX)
    pick = affinities.pick(model, "prefix", ranking, hint=prompt)
    if pick is not None:
        affinities.learn(pick)
    session = Hint(session=b"s")
    return {
        "session": microseconds(lambda: affinities.pick(model, "session", ranking, hint=session), requests),
        "prefix": microseconds(lambda: affinities.pick(model, "prefix", ranking, hint=prompt), requests // 10),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--requests", type=int, default=20_000)
    requests = options.parse_args().requests
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, msgspec "
        f"{msgspec.__version__}; microseconds"
    )
    columns = ("decision", "session", "prefix", "route + release", "plain minimum")
    print(f"{'replicas':>8}" + "".join(f"{column:>18}" for column in columns))
    for size in SIZES:
        figures = asyncio.run(measure(size, requests))
        print(f"{size:8}" + "".join(f"{figures[column]:18.2f}" for column in columns))


if __name__ == "__main__":
    main()
