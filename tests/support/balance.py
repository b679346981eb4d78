"""Load on several router processes, and how evenly the replicas share it: for the test and the benchmark of X24.

Invariant: whoever asks holds each lease itself, so what is in flight on a replica is counted here, not told by anyone.
"""

import asyncio
import contextlib
import random
import sys
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import grpc.aio
import msgspec

from modelyard_services.router.proto.modelyard.v1 import scheduler_pb2 as pb
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2_grpc import SchedulerStub
from tests.support.yard import free_port

OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
START_SECONDS = 180.0
"""Of router processes, two seconds alone; a minute has been too little where everything else runs as well."""

SAMPLE_SECONDS = 0.01


class Balance(msgspec.Struct, frozen=True):
    """`mean` is the busiest replica's in-flight over the mean of all, both over time; `moments` that of each sample."""

    mean: float
    moments: list[float]
    served: dict[str, int]

    def moment(self, share: float) -> float:
        """The ratio that `share` of all moments don't pass."""
        return sorted(self.moments)[round(share * (len(self.moments) - 1))]


class Load:
    """Closed loop: each client asks, holds its lease for a random while, gives it back, and asks again."""

    def __init__(self, replicas: Sequence[str], *, hold_seconds: float, seed: int = 1) -> None:
        self.in_flight = dict.fromkeys(replicas, 0)
        self.served: Counter[str] = Counter()
        self._hold_seconds = hold_seconds
        self._stopping = False
        self._random = random.Random(seed)  # noqa: S311 - load, not a secret

    async def run(self, stubs: Sequence[SchedulerStub], *, clients: int, seconds: float) -> Balance:
        """`clients` on each router, for `seconds` once all of them are at work."""
        tasks = [asyncio.create_task(self._client(stub)) for stub in stubs for _ in range(clients)]
        try:
            await self._settled(len(tasks))
            return await self._measured(seconds)
        finally:
            # Each gives its lease back: one that is cancelled would weigh on its replica for a minute.
            self._stopping = True
            await asyncio.gather(*tasks)

    async def _client(self, stub: SchedulerStub) -> None:
        while not self._stopping:
            lease = await stub.Route(pb.RouteRequest(model="m"))
            self.in_flight[lease.replica] += 1
            self.served[lease.replica] += 1
            # Answers differ in length; equal ones would march in step and balance themselves.
            await asyncio.sleep(self._random.expovariate(1 / self._hold_seconds))
            self.in_flight[lease.replica] -= 1
            await stub.Release(pb.ReleaseRequest(lease=lease.lease))

    async def _settled(self, clients: int) -> None:
        async with asyncio.timeout(START_SECONDS):
            while sum(self.served.values()) < 3 * clients:  # noqa: ASYNC110 - load has no event to wait on
                await asyncio.sleep(SAMPLE_SECONDS)

    async def _measured(self, seconds: float) -> Balance:
        totals, moments = dict.fromkeys(self.in_flight, 0), []
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(SAMPLE_SECONDS)
            for replica, count in self.in_flight.items():
                totals[replica] += count
            moments.append(_uneven(self.in_flight.values()))
        return Balance(_uneven(totals.values()), moments, dict(self.served))


def _uneven(counts: object) -> float:
    values = list(counts)  # type: ignore[call-overload]
    return max(values) * len(values) / max(1, sum(values)) if values else 1.0


@contextlib.asynccontextmanager
async def router_processes(nats_url: str, *, count: int) -> AsyncIterator[list[SchedulerStub]]:
    """`modelyard router` as many times, each on gRPC, ready for requests."""
    async with contextlib.AsyncExitStack() as stack:
        stubs = []
        for _ in range(count):
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "modelyard_services", "router",
                "--nats-url", nats_url, "--grpc-port", str(port), "--log-level", "error",
                stdout=DEVNULL,
            )  # fmt: skip
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS))
            stubs.append(SchedulerStub(channel))  # type: ignore[no-untyped-call]  # generated
        for stub in stubs:
            await _answers(stub)
        yield stubs


async def _answers(stub: SchedulerStub) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                lease = await stub.Route(pb.RouteRequest(model="m"), wait_for_ready=True)
                await stub.Release(pb.ReleaseRequest(lease=lease.lease))
                return
            await asyncio.sleep(0.1)
