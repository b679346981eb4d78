"""The router over the in-memory log: ranking, probes, cold loads, limits, and the counts that others see."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import pytest
from prometheus_client import REGISTRY

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, FleetTokenCreated, Settings
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelReplicaEnded, ModelReplicaReady
from modelyard_events.node import NodeLabelsChanged
from modelyard_events.replica import (
    Process,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
    ReplicaUnloaded,
)
from modelyard_events.reservation import ReservationReleased
from modelyard_events.spec import Health, ModelSpec
from modelyard_events.subjects import router_telemetry_subject, worker_subject
from modelyard_events.telemetry import Heartbeat, ReplicaReading, RouterReport
from modelyard_projections.demand import gone_after_ns
from modelyard_projections.fleet import ReplicaState
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.health import Healthy, Outcome, Refused, TimedOut
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.errors import (
    ModelLoadingError,
    ModelUnknownError,
    NoCapacityError,
    OverloadedError,
    ReplicaFailedError,
    UnavailableError,
    UnsatisfiableError,
)
from modelyard_services.router.loading import Caller, HeldUpError, Loader
from modelyard_services.router.probes import Prober
from modelyard_services.router.reports import TELL_SECONDS, Reporter
from modelyard_services.router.router import Ask, Router
from modelyard_services.settings import RouterSettings
from tests.support.given import GIB, a_drain, a_model, a_ready_replica, an_approved_node, incarnation_of
from tests.support.held_clock import HeldClock

NOW = Ask(wait_seconds=0)


class World:
    """A log, a bus, one router on them, and what the replicas' processes answer (healthy unless told)."""

    def __init__(self, runtime: Runtime, bus: MemoryBus) -> None:
        self.runtime = runtime
        self.bus = bus
        self.answers: dict[str, Outcome] = {}
        self.asked: list[str] = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def answer(self, address: str, _health: Health) -> Outcome:
        self.asked.append(address)
        await self.answering.wait()
        return self.answers.get(address, Healthy())

    @contextlib.asynccontextmanager
    async def router(self, *, fresh_seconds: float = 30.0, queue_max: int = 1_024) -> AsyncIterator[Router]:
        prober = Prober(fresh_seconds=fresh_seconds, asked=self.answer)
        async with Router(self.runtime, settings=RouterSettings(queue_max=queue_max), prober=prober) as router:
            await router.wait_ready(timeout_seconds=1)
            yield router

    async def commit(self, *events: AnyEvent) -> None:
        await self.runtime.journal.commit(self.runtime.envelope(), lambda _fleet: events)

    async def happens(self, *histories: Sequence[AnyEvent]) -> None:
        for history in histories:
            await self.commit(*history)

    def address(self, replica: str) -> str:
        state = self.runtime.fleet.replicas[ReplicaId(replica)]
        return getattr(state.phase, "address", "")

    async def placed(self) -> ReplicaState:
        """The replica that a cold request had placed."""
        await eventually(lambda: bool(self.runtime.fleet.replicas))
        (state,) = self.runtime.fleet.replicas.values()
        return state

    async def becomes_ready(self, state: ReplicaState) -> None:
        await self.starts_loading(state)
        await self.is_loaded(state)

    async def starts_loading(self, state: ReplicaState) -> None:
        process = Process(pid=1, started_at=1.0, port=1)
        life = incarnation_of(state.node)
        await self.commit(ReplicaLoadStarted(node=state.node, replica=state.id, incarnation=life, process=process))

    async def is_loaded(self, state: ReplicaState) -> None:
        life = incarnation_of(state.node)
        await self.commit(
            ReplicaLoaded(node=state.node, replica=state.id, incarnation=life, address="127.0.0.1:1"),
            ModelReplicaReady(model=state.model, replica=state.id),
        )

    async def fails_to_load(self, state: ReplicaState, detail: str) -> None:
        ids = (state.id,)
        await self.commit(
            ReplicaLoadFailed(node=state.node, replica=state.id, detail=detail),
            ReplicaUnloaded(node=state.node, replicas=ids, reason="load_failed"),
            ReservationReleased(node=state.node, reservations=(state.reservation,)),
            ModelReplicaEnded(model=state.model, replicas=ids, reason="load_failed", detail=detail),
        )


class HeldUpLoader(Loader):
    """A loader with somebody in the way, until told otherwise."""

    def __init__(self, real: Loader) -> None:
        super().__init__(real._runtime, real._readings)
        self.blocked = True
        self.asked = 0

    async def begin(self, model: ModelName, *, shut: frozenset[ReplicaId], caller: Caller) -> ReplicaId | None:
        self.asked += 1
        if self.blocked:
            raise HeldUpError("somebody is in the way")
        return await super().begin(model, shut=shut, caller=caller)


async def eventually(holds: Callable[[], bool], *, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event to wait on
            await asyncio.sleep(0.005)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    bus = MemoryBus()
    async with in_memory("router", MemoryLog(), bus) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield World(runtime, bus)


def two_ready() -> list[Sequence[AnyEvent]]:
    return [
        [*an_approved_node("n1"), *an_approved_node("n2"), *a_model()],
        a_ready_replica("r-1", node="n1"),
        a_ready_replica("r-2", node="n2"),
    ]


async def test_equal_load_is_spread_evenly_over_replicas(world: World) -> None:
    """X24: one request at a time alternates, many at once divide."""
    await world.happens(*two_ready())
    async with world.router() as router:
        singly = []
        for _ in range(10):
            lease = await router.route("m")
            singly.append(lease.replica)
            router.release(lease.lease)
        at_once = [(await router.route("m")).replica for _ in range(10)]
    for used in (singly, at_once):
        assert sorted(used) == ["r-1"] * 5 + ["r-2"] * 5


async def test_a_dead_first_pick_is_passed_over_for_its_sibling_and_comes_back(world: World) -> None:
    """X14, T9, X12: no cold load, nothing ends, and the sibling serves at once."""
    await world.happens(*two_ready())
    dead = world.address("r-1")
    world.answers[dead] = Refused()
    async with world.router() as router:
        leases = [await router.route("m") for _ in range(4)]
        assert {lease.replica for lease in leases} == {"r-2"}
        assert len(world.runtime.fleet.replicas) == 2
        assert world.asked.count(dead) == 1, "a replica that is out isn't asked again by requests"
        world.answers[dead] = Healthy()
        await eventually(lambda: router._board.shut_ones() == [])
        assert (await router.route("m")).replica == "r-1"


async def test_a_replica_too_busy_to_answer_its_probe_is_not_dead(world: World) -> None:
    """X15: silence while a request is in flight is no failure."""
    await world.happens(*two_ready())
    async with world.router(fresh_seconds=0) as router:
        first, second = await router.route("m"), await router.route("m")
        world.answers = {first.address: TimedOut(), second.address: TimedOut()}
        assert {(await router.route("m")).replica for _ in range(2)} == {"r-1", "r-2"}


async def test_a_replica_that_serves_another_routers_request_is_not_dead_for_its_silence(world: World) -> None:
    """X15: whose requests keep it busy makes no difference."""
    await world.happens([*an_approved_node("n1"), *a_model()], a_ready_replica("r-1", node="n1"))
    report = RouterReport(router="other", folded_sequence=1, in_flight={ReplicaId("r-1"): 1})
    world.runtime.demand.hear_router(report, now_ns=world.runtime.clock.monotonic_ns() + 60 * 1_000_000_000)
    async with world.router() as router:
        await eventually(lambda: [one.in_flight for one in router._board.candidates(ModelName("m"))] == [1])
        world.answers[world.address("r-1")] = TimedOut()
        assert (await router.route("m")).replica == "r-1"
        assert router._board.shut_ones() == []


async def test_a_silent_replica_that_serves_nobody_is_out(world: World) -> None:
    """T4: requests that only wait for the same probe don't make a hung process look busy."""
    await world.happens(*two_ready())
    world.answers[world.address("r-1")] = TimedOut()
    async with world.router() as router:
        leases = await asyncio.gather(*[router.route("m") for _ in range(6)])
        assert {lease.replica for lease in leases} == {"r-2"}


async def test_one_probe_serves_all_who_wait_and_a_success_holds(world: World) -> None:
    """T4: single flight, cached per process."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica())
    async with world.router() as router:
        world.answering.clear()
        waiting = [asyncio.create_task(router.route("m")) for _ in range(5)]
        await eventually(lambda: len(world.asked) > 0)
        assert router._report(leaving=False).in_flight == {}, "nobody holds a lease yet"
        world.answering.set()
        await asyncio.gather(*waiting)
        await router.route("m")
        assert len(world.asked) == 1
        assert router._report(leaving=False).in_flight == {"r-1": 6}


async def test_a_request_that_is_cancelled_while_it_is_probed_holds_nothing(world: World) -> None:
    """X16."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica())
    async with world.router() as router:
        world.answering.clear()
        waiting = asyncio.create_task(router.route("m"))
        await eventually(lambda: len(world.asked) > 0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert len(router._book) == 0
        world.answering.set()


async def test_a_draining_replica_gets_no_new_lease_and_keeps_the_one_it_has(world: World) -> None:
    """R8, X11."""
    await world.happens(*two_ready())
    async with world.router() as router:
        leases = {lease.replica: lease for lease in [await router.route("m"), await router.route("m")]}
        await world.commit(*a_drain("r-1", node="n1"))
        assert {(await router.route("m")).replica for _ in range(4)} == {"r-2"}
        report = router._report(leaving=False)
        assert report.in_flight[ReplicaId("r-1")] == 1
        assert report.folded_sequence == world.runtime.fleet.sequence
        assert router.release(leases[ReplicaId("r-1")].lease)
        assert "r-1" not in router._report(leaving=False).in_flight


async def test_a_drain_that_begins_while_a_replica_is_probed_wins(world: World) -> None:
    """R8: what was folded before the lease is handed out counts."""
    await world.happens(*two_ready())
    world.answers[world.address("r-2")] = Refused()
    async with world.router() as router:
        world.answering.clear()
        waiting = asyncio.create_task(router.route("m"))
        await eventually(lambda: len(world.asked) > 0)
        drained = "r-1" if world.asked[0] == world.address("r-1") else "r-2"
        world.answers.clear()
        await world.commit(*a_drain(drained, node="n1" if drained == "r-1" else "n2"))
        world.answering.set()
        assert (await waiting).replica != drained


async def test_a_lease_is_released_once(world: World) -> None:
    """T2: a second release changes no count."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica())
    async with world.router() as router:
        one, _other = await router.route("m"), await router.route("m")
        assert router.release(one.lease)
        assert not router.release(one.lease)
        assert router._report(leaving=False).in_flight == {"r-1": 1}


async def test_a_lease_in_foreign_hands_expires(world: World) -> None:
    """T2."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica())
    async with world.router() as router:
        lease = await router.route("m", Ask(lease_seconds=0.05))
        assert lease.expires_at_ns is not None
        await eventually(lambda: len(router._book) == 0)
        assert not router.release(lease.lease)


async def test_two_routers_see_each_others_leases_and_forget_those_of_one_that_leaves(world: World) -> None:
    """T2."""
    await world.happens(*two_ready())
    async with world.router() as one:
        async with world.router() as other:
            first = await one.route("m")
            await eventually(lambda: bool(other._board._others._sums))
            assert (await other.route("m")).replica != first.replica
            await eventually(lambda: bool(one._board._others._sums))
        assert one._board._others._sums == {}


async def test_the_leases_of_a_router_that_was_killed_are_forgotten(world: World) -> None:
    """X16, T2: it says no goodbye; its silence frees what it held."""
    await world.happens(*two_ready())
    report = RouterReport(router="killed", folded_sequence=1, in_flight={ReplicaId("r-1"): 3})
    almost_silent_ns = world.runtime.clock.monotonic_ns() - gone_after_ns(Settings()) + 300_000_000
    world.runtime.demand.hear_router(report, now_ns=almost_silent_ns)
    async with world.router() as router:
        await eventually(lambda: router._board._others._sums == {"r-1": 3})
        assert {(await router.route("m")).replica for _ in range(2)} == {"r-2"}
        await eventually(lambda: router._board._others._sums == {})
        assert (await router.route("m")).replica == "r-1"


async def test_an_event_of_its_node_leaves_a_replicas_load_as_it_is(world: World) -> None:
    """T2, X16: what is folded anew keeps its own leases and those of other routers, and ends at nothing."""
    await world.happens(*two_ready())
    now_ns = world.runtime.clock.monotonic_ns()
    report = RouterReport(router="other", folded_sequence=1, in_flight={ReplicaId("r-1"): 3})
    world.runtime.demand.hear_router(report, now_ns=now_ns + 60 * 1_000_000_000)
    async with world.router() as router:

        def load() -> dict[str, int]:
            return {candidate.replica: candidate.in_flight for candidate in router._board.candidates(ModelName("m"))}

        await eventually(lambda: load() == {"r-1": 3, "r-2": 0})
        lease = await router.route("m")
        for node in ("n1", "n2"):
            await world.commit(NodeLabelsChanged(node=node, changed={"rack": "7"}))  # type: ignore[dict-item]
        assert load() == {"r-1": 3, "r-2": 1}
        assert router.release(lease.lease)
        assert load() == {"r-1": 3, "r-2": 0}


async def test_a_router_that_cannot_be_read_is_not_taken_for_one_that_holds_nothing(world: World) -> None:
    """X20: what it holds isn't known, so nobody here may call a replica idle."""
    async with world.router() as router:
        runtime = world.runtime
        runtime.connected_since_ns = runtime.clock.monotonic_ns() - gone_after_ns(Settings())
        assert router.readings(runtime.fleet).knows_routers
        await world.bus.publish(router_telemetry_subject("newer"), b'{"router":"newer","folded_sequence":"all"}')
        assert not router.readings(runtime.fleet).knows_routers


async def test_a_connection_that_fails_takes_out_that_replica_alone(world: World) -> None:
    """X12, X14: its sibling serves on, nothing ends and nothing is loaded."""
    await world.happens(*two_ready())
    async with world.router() as router:
        failed = await router.route("m")
        world.answers[failed.address] = Refused()
        before = world.runtime.fleet.sequence
        router.failed(failed, "connection refused")
        assert [candidate.replica for candidate in router._board.shut_ones()] == [failed.replica]
        sibling = {(await router.route("m")).replica for _ in range(4)}
        assert sibling == {"r-1", "r-2"} - {failed.replica}
        assert world.runtime.fleet.sequence == before


async def test_a_replica_that_is_out_comes_back_though_it_is_too_busy_to_answer(world: World) -> None:
    """X15: a connection broke; the process listens, and serves another router's request meanwhile."""
    await world.happens(*two_ready())
    report = RouterReport(router="other", folded_sequence=1, in_flight={ReplicaId("r-1"): 1})
    world.runtime.demand.hear_router(report, now_ns=world.runtime.clock.monotonic_ns() + 60 * 1_000_000_000)
    async with world.router() as router:
        await eventually(lambda: router._board._others._sums == {"r-1": 1})
        leases = [await router.route("m") for _ in range(3)]
        failed = next(lease for lease in leases if lease.replica == "r-1")
        for lease in leases:
            router.release(lease.lease)
        world.answers[failed.address] = TimedOut()
        router.failed(failed, "connection reset")
        assert [candidate.replica for candidate in router._board.shut_ones()] == ["r-1"]
        await eventually(lambda: router._board.shut_ones() == [])


async def test_the_last_use_of_a_replica_survives_a_restart_of_the_router(world: World) -> None:
    """T2: heartbeats carry it."""
    await world.happens(*two_ready())
    state = world.runtime.fleet.replicas[ReplicaId("r-1")]
    process = state.process
    assert process is not None
    reading = ReplicaReading(
        replica=state.id, key="m#0", revision="a", activity="ready", process=process, last_used_ns=10**18
    )
    heartbeat = Heartbeat(NodeName("n1"), incarnation_of("n1"), folded_sequence=1, replicas=(reading,))
    world.runtime.demand.hear_node(heartbeat, now_ns=world.runtime.clock.monotonic_ns())
    async with world.router() as router:
        await eventually(lambda: router._board.candidates(ModelName("m"))[0].last_used_ns == 10**18)
        assert (await router.route("m")).replica == "r-2"


async def test_workers_are_told_when_their_replicas_were_used(world: World) -> None:
    """T2, P3."""
    told: list[bytes] = []
    await world.bus.listen(worker_subject(NodeName("n1"), "used"), lambda _subject, body: told.append(body))
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica())
    async with world.router() as router:
        router.release((await router.route("m")).lease)
        used_ns = dict(router._board.used())
        await eventually(lambda: bool(told))
    assert msgspec.json.decode(told[0]) == used_ns


async def test_a_router_that_nobody_hears_takes_no_requests(world: World) -> None:
    """DESIGN 4: what it granted, nobody would see."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica())
    async with world.router() as router:
        await router.route("m")
        router._reporter._heard_ns = world.runtime.clock.monotonic_ns() - 3_000_000_000
        with pytest.raises(UnavailableError):
            await router.route("m")
        assert router.problems


async def test_above_max_concurrency_requests_queue_and_go_on_in_order(world: World) -> None:
    """T7."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica(max_concurrency=1))
    async with world.router() as router:
        lease = await router.route("m")
        with pytest.raises(OverloadedError) as full:
            await router.route("m", NOW)
        assert full.value.retry_after_seconds
        done: list[int] = []

        async def use(number: int) -> None:
            mine = await router.route("m")
            done.append(number)
            assert router._report(leaving=False).in_flight == {"r-1": 1}
            await asyncio.sleep(0)
            router.release(mine.lease)

        tasks = [asyncio.create_task(use(number)) for number in range(20)]
        await eventually(lambda: router._queues.lengths() == {"m": 20})
        router.release(lease.lease)
        await asyncio.gather(*tasks)
        assert done == list(range(20))


async def test_who_comes_does_not_pass_those_who_wait(world: World) -> None:
    """T7: between a release and the first waiter's turn somebody new asks, and gets the next."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica(max_concurrency=1))
    async with world.router() as router:
        lease = await router.route("m")
        done: list[str] = []

        async def use(name: str) -> None:
            mine = await router.route("m")
            done.append(name)
            router.release(mine.lease)

        first = asyncio.create_task(use("waits"))
        await eventually(lambda: router._queues.lengths() == {"m": 1})
        router.release(lease.lease)
        await use("comes")  # in this very task: nobody else had a turn yet
        await first
        assert done == ["waits", "comes"]


async def test_a_request_that_can_use_nothing_free_lets_the_next_one_have_it(world: World) -> None:
    """T7: its own replica is full, and it has tried the free one in vain."""
    await world.happens([*an_approved_node("n1"), *an_approved_node("n2"), *a_model()])
    await world.happens(a_ready_replica("r-1", node="n1", max_concurrency=1))
    await world.happens(a_ready_replica("r-2", node="n2", max_concurrency=1))
    async with world.router() as router:
        leases = [await router.route("m"), await router.route("m")]
        freed = next(lease for lease in leases if lease.replica == "r-2")
        picky = asyncio.create_task(router.route("m", Ask(avoid=frozenset({ReplicaId("r-2")}))))
        await eventually(lambda: router._queues.lengths() == {"m": 1})
        other = asyncio.create_task(router.route("m"))
        await eventually(lambda: router._queues.lengths() == {"m": 2})
        router.release(freed.lease)
        assert (await asyncio.wait_for(other, 0.5)).replica == "r-2"
        assert not picky.done()
        picky.cancel()


async def test_a_full_queue_is_answered_with_its_length_and_when_to_ask_again(world: World) -> None:
    """T7."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica(max_concurrency=1))
    async with world.router(queue_max=2) as router:
        await router.route("m")
        waiting = [asyncio.create_task(router.route("m")) for _ in range(2)]
        await eventually(lambda: router._queues.lengths() == {"m": 2})
        with pytest.raises(OverloadedError) as full:
            await router.route("m")
        assert full.value.extra == {"queued": 2}
        assert full.value.retry_after_seconds
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert not router._queues.lengths()


async def test_requests_queued_for_a_full_replica_count_the_other_routers_too(world: World) -> None:
    """T7."""
    await world.happens([*an_approved_node(), *a_model()], a_ready_replica(max_concurrency=1))
    async with world.router() as router:
        report = RouterReport(router="other", folded_sequence=1, in_flight={ReplicaId("r-1"): 1})
        await world.bus.publish(router_telemetry_subject("other"), msgspec.json.encode(report))
        with pytest.raises(OverloadedError):
            await router.route("m", NOW)
        free = RouterReport(router="other", folded_sequence=1, in_flight={})
        waiting = asyncio.create_task(router.route("m"))
        await eventually(lambda: ModelName("m") in router._queues)
        await world.bus.publish(router_telemetry_subject("other"), msgspec.json.encode(free))
        assert (await asyncio.wait_for(waiting, 20)).replica == "r-1"


async def test_an_unknown_model_is_refused(world: World) -> None:
    """T8."""
    async with world.router() as router:
        with pytest.raises(ModelUnknownError):
            await router.route("nobody/knows")


async def test_first_requests_of_a_cold_model_cause_one_load_and_all_wait_for_it(world: World) -> None:
    """T5, also over two routers."""
    await world.happens([*an_approved_node("n1"), *an_approved_node("n2"), *a_model()])
    async with world.router() as one, world.router() as other:
        asking = [asyncio.create_task(router.route("m")) for router in (one, other) for _ in range(10)]
        state = await world.placed()
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asking)
        await world.becomes_ready(state)
        leases = await asyncio.gather(*asking)
        assert {lease.replica for lease in leases} == {state.id}
        assert len(world.runtime.fleet.replicas) == 1


async def test_a_caller_without_patience_is_told_how_far_the_load_is(world: World) -> None:
    """T5."""
    await world.happens([*an_approved_node(), *a_model()])
    async with world.router() as router:
        with pytest.raises(ModelLoadingError) as told:
            await router.route("m", NOW)
    assert told.value.extra["state"] == "placed"
    assert told.value.extra["node"] == "n1"
    assert told.value.extra.keys() >= {"progress", "queue_position", "eta_seconds"}
    assert 5 <= (told.value.retry_after_seconds or 0) <= 120


async def test_the_last_load_of_a_model_says_how_long_this_one_takes(world: World) -> None:
    """T5: where its process tells no progress."""
    await world.happens([*an_approved_node("n1"), *an_approved_node("n2"), *a_model()])
    async with world.router() as router:
        asking = asyncio.create_task(router.route("m"))
        state = await world.placed()
        await world.starts_loading(state)
        await asyncio.sleep(0.02)
        await world.is_loaded(state)
        await asking
        await world.happens(a_drain(state.id, node=state.node))
        with pytest.raises(ModelLoadingError) as told:
            await router.route("m", NOW)
    eta = told.value.extra["eta_seconds"]
    assert isinstance(eta, float)
    assert 0 <= eta < 5
    assert told.value.retry_after_seconds == 5


async def test_those_who_wait_are_told_how_many_are_before_them(world: World) -> None:
    """T5, T7."""
    await world.happens([*an_approved_node(), *a_model()])
    async with world.router() as router:
        waiting = [asyncio.create_task(router.route("m")) for _ in range(3)]
        await eventually(lambda: router._queues.lengths() == {"m": 3})
        with pytest.raises(ModelLoadingError) as told:
            await router.route("m", NOW)
        assert told.value.extra["queue_position"] == 3
        for task in waiting:
            task.cancel()


async def test_a_failed_load_is_tried_on_another_node_for_those_who_wait(world: World) -> None:
    """T6: while one node backs off, others are tried; after the third failure the reason is the answer."""
    names = ["n1", "n2", "n3", "n4", "n5"]
    await world.happens([event for name in names for event in an_approved_node(name)], a_model())
    async with world.router() as router:
        asking = asyncio.create_task(router.route("m"))
        tried: set[str] = set()
        for number in range(3):
            state = await world.placed()
            tried.add(state.node)
            await world.fails_to_load(state, f"exit code {number}")
        assert len(tried) == 3
        with pytest.raises(ReplicaFailedError, match="3 times, the last: exit code 2"):
            await asyncio.wait_for(asking, 20)
        second = asyncio.create_task(router.route("m"))
        state = await world.placed()
        assert state.node not in tried
        await world.becomes_ready(state)
        assert (await second).replica == state.id
        assert state.node not in {
            node.name for node in world.runtime.fleet.nodes.values() if ModelName("m") in node.load_failures
        }


async def test_a_load_that_others_are_in_the_way_of_waits_for_them(world: World) -> None:
    """P4: it asks again each second, and goes on as soon as there is room; without patience it is told at once."""
    await world.happens([*an_approved_node(vram=4 * GIB), *a_model("m", ModelSpec(command=("serve",), vram=3 * GIB))])
    async with world.router() as router:
        router._loader = held_up = HeldUpLoader(router._loader)
        with pytest.raises(HeldUpError):
            await router.route("m", NOW)
        asking = asyncio.create_task(router.route("m"))
        await eventually(lambda: held_up.asked >= 3)
        assert not asking.done()
        held_up.blocked = False
        await world.becomes_ready(await world.placed())
        assert (await asyncio.wait_for(asking, 20)).model == "m"


async def test_a_load_that_failed_answers_its_real_reason(world: World) -> None:
    """T5: to those who waited, and while it backs off, to those who come."""
    await world.happens([*an_approved_node(), *a_model()])
    async with world.router() as router:
        asking = asyncio.create_task(router.route("m"))
        await world.fails_to_load(await world.placed(), "exit code 1: no such file: weights.gguf")
        for waiting in (asking, asyncio.create_task(router.route("m"))):
            with pytest.raises(ReplicaFailedError, match=r"weights\.gguf"):
                await asyncio.wait_for(waiting, 20)


async def test_no_capacity_and_never_any_are_told_apart(world: World) -> None:
    """P5, T8."""
    await world.happens([*an_approved_node(vram=4 * GIB), *a_model("m", ModelSpec(command=("serve",), vram=3 * GIB))])
    await world.happens(a_model("huge", ModelSpec(command=("serve",), vram=80 * GIB)))
    await world.happens(a_ready_replica("r-9", model="m", vram={0: 3 * GIB}))
    await world.happens(a_model("other", ModelSpec(command=("serve",), vram=3 * GIB)))
    async with world.router() as router:
        with pytest.raises(UnsatisfiableError, match="vram"):
            await router.route("huge", NOW)
        with pytest.raises(NoCapacityError, match="vram"):
            await router.route("other", NOW)


async def test_a_cold_model_that_is_refused_again_and_again_is_counted(world: World) -> None:
    """P5: each refusal in the figures, the first in the log."""
    await world.happens(an_approved_node(), a_model("huge", ModelSpec(command=("serve",), vram=80 * GIB)))
    async with world.router() as router:
        before = _refused("unsatisfiable")
        for _ in range(3):
            with pytest.raises(UnsatisfiableError):
                await router.route("huge", NOW)
        assert _refused("unsatisfiable") == before + 3


def _refused(kind: str) -> float:
    return REGISTRY.get_sample_value("modelyard_placements_refused_total", {"kind": kind}) or 0.0


async def test_when_every_replica_is_dead_another_is_loaded_elsewhere(world: World) -> None:
    """T4: cold loading starts only when none is left."""
    await world.happens(
        [*an_approved_node("n1"), *an_approved_node("n2"), *a_model()], a_ready_replica("r-1", node="n1")
    )
    world.answers[world.address("r-1")] = Refused()
    async with world.router() as router:
        asking = asyncio.create_task(router.route("m"))
        await eventually(lambda: len(world.runtime.fleet.replicas) == 2)
        new = next(state for state in world.runtime.fleet.replicas.values() if state.id != "r-1")
        assert new.node == "n2"
        await world.becomes_ready(new)
        assert (await asking).replica == new.id


async def test_two_routers_that_find_every_replica_dead_load_one_between_them(world: World) -> None:
    """T5, X14: the one that loses the race joins the winner's load, though its own picture was of none."""
    nodes = [event for name in ("n1", "n2", "n3") for event in an_approved_node(name)]
    await world.happens([*nodes, *a_model()], a_ready_replica("r-1", node="n1"))
    world.answers[world.address("r-1")] = Refused()
    async with world.router() as one, world.router() as other:
        asking = [asyncio.create_task(router.route("m")) for router in (one, other)]
        await eventually(lambda: len(world.runtime.fleet.replicas) == 2)
        new = next(state for state in world.runtime.fleet.replicas.values() if state.id != "r-1")
        await world.becomes_ready(new)
        assert {(await each).replica for each in asking} == {new.id}
    assert set(world.runtime.fleet.replicas) == {"r-1", new.id}


async def test_a_request_that_every_replica_failed_is_answered_so(world: World) -> None:
    """T9: it doesn't wait for a miracle, and loads nothing."""
    await world.happens(*two_ready())
    async with world.router() as router:
        everywhere = frozenset({ReplicaId("r-1"), ReplicaId("r-2")})
        with pytest.raises(ReplicaFailedError):
            await asyncio.wait_for(router.route("m", Ask(avoid=everywhere)), 20)


async def test_routers_tell_one_another_when_a_token_was_last_used(world: World) -> None:
    """N4: whichever process lets a client in, the list of tokens knows; of a token that is gone nothing is kept."""
    await world.happens([FleetTokenCreated(name="ci", role="viewer", digest="0" * 64)])
    async with in_memory("other", MemoryLog(), world.bus) as other, world.router():
        await other.wait_ready(timeout_seconds=1)
        for name in ("ci", "gone"):
            world.runtime.note_token_use(name)
        async with asyncio.timeout(5):
            while not other.demand.tokens_used_ns:  # noqa: ASYNC110 - a report is on its way
                await asyncio.sleep(0.01)
        assert other.demand.tokens_used_ns.keys() == {"ci"}
        assert world.runtime.demand.tokens_used_ns.keys() == {"ci"}


def set_to(**settings: float) -> list[AnyEvent]:
    return [FleetSettingsChanged(settings=Settings(**settings), changed=tuple(settings))]  # type: ignore[arg-type]


async def test_a_lease_lives_as_long_as_the_settings_say(world: World) -> None:
    """T2, S1: at the next renewal already."""
    await world.happens(*two_ready())
    async with world.router() as router:
        lease = await router.route("m", Ask(lease_seconds=world.runtime.fleet.settings.lease_seconds))
        await world.happens(set_to(lease_seconds=300.0))
        renewed = router.renew(lease.lease)
    assert lease.expires_at_ns is not None
    assert renewed is not None
    assert renewed.expires_at_ns is not None
    assert 239 <= (renewed.expires_at_ns - lease.expires_at_ns) / 1e9 <= 300


async def test_who_is_held_up_tries_as_long_as_the_settings_say(world: World) -> None:
    """P4, S1: not at all, here."""
    await world.happens([*an_approved_node(), *a_model()], set_to(held_up_seconds=0.0))
    async with world.router() as router:
        router._loader = HeldUpLoader(router._loader)
        with pytest.raises(HeldUpError):
            await asyncio.wait_for(router.route("m"), 20)


async def test_who_is_held_up_tries_again_as_often_as_the_settings_say(world: World) -> None:
    """P4, S1: woken in between, it waits on; by the rule it tries each second."""
    await world.happens([*an_approved_node(), *a_model()], set_to(held_up_retry_seconds=3.0))
    world.runtime.clock = clock = HeldClock()
    async with world.router() as router:
        router._loader = held_up = HeldUpLoader(router._loader)
        asking = asyncio.create_task(router.route("m"))
        await eventually(lambda: held_up.asked == 1)
        for seconds, tries in ((1.0, 1), (0.9, 1), (0.2, 2), (1.9, 2), (0.2, 3)):
            clock.move(seconds)
            router._reporter._heard_ns = clock.monotonic_ns()
            router._queues.wake_all()
            for _ in range(20):
                await asyncio.sleep(0)
            assert held_up.asked == tries
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.parametrize(("least", "most", "told"), [(40.0, 60.0, 40), (1.0, 3.0, 3), (5.0, 120.0, 15)])
async def test_a_model_that_loads_is_asked_for_again_as_soon_as_the_settings_say(
    world: World, least: float, most: float, told: float
) -> None:
    """T5, S1: 15 s where nobody knows, within the bounds."""
    settings = set_to(retry_after_min_seconds=least, retry_after_max_seconds=most)
    await world.happens([*an_approved_node(), *a_model()], settings)
    async with world.router() as router:
        with pytest.raises(ModelLoadingError) as loading:
            await router.route("m", NOW)
    assert loading.value.retry_after_seconds == told


async def test_a_router_may_be_unheard_for_a_part_of_the_silence_that_the_settings_allow(world: World) -> None:
    """T2, S1: after 3 s it takes no requests by the rule; where it may be silent for half a minute, it does."""
    await world.happens(*two_ready(), set_to(router_silence_seconds=30.0))
    async with world.router() as router:
        router._reporter._heard_ns = world.runtime.clock.monotonic_ns() - 3_000_000_000
        assert router._reporter.is_heard()
        router._reporter._heard_ns = world.runtime.clock.monotonic_ns() - 13_000_000_000
        assert not router._reporter.is_heard()


class Ticking(HeldClock):
    """Stands still but for what a test moves, and counts how often a reporter looks at it."""

    looks = 0

    async def sleep(self, seconds: float) -> None:
        self.looks += seconds == TELL_SECONDS
        await asyncio.sleep(0.001)

    async def looked_at(self) -> None:
        """Until a reporter has looked at it since."""
        enough = self.looks + 2
        await eventually(lambda: self.looks >= enough)


async def test_a_router_tells_of_its_leases_as_often_as_the_settings_say(world: World) -> None:
    """T2, S1: where nothing changes; 1.9 s isn't long enough, a tenth more is."""
    world.runtime.clock = clock = Ticking()
    await world.happens(*two_ready(), set_to(router_report_seconds=2.1, router_silence_seconds=60.0))
    reports: list[RouterReport] = []
    world.runtime.on_report(reports.append)
    reporter = Reporter(world.runtime, "router-1")
    telling = asyncio.create_task(
        reporter.keep_telling(lambda: RouterReport("router-1", world.runtime.fleet.sequence), lambda: 0)
    )
    await eventually(lambda: len(reports) == 1)
    for seconds, told in ((1.9, 1), (0.2, 2), (1.9, 2), (0.2, 3)):
        clock.move(seconds)
        await clock.looked_at()
        assert len(reports) == told
    telling.cancel()


async def test_a_probe_takes_no_longer_than_the_router_is_told(world: World) -> None:
    """T4, S1: whoever listens and says nothing is given up after a tenth of a second here, by the rule after two."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        async with Router(world.runtime, settings=RouterSettings(probe_seconds=0.1)) as router:
            outcome = await router._checks._prober._ask(f"127.0.0.1:{silent.getsockname()[1]}", Health(http="/"))
    assert outcome == TimedOut()
    assert time.monotonic() - began < 1.5
