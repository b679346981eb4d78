"""The decide-and-append loop over the in-memory log: conflicts, repeats, refusals."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import IncarnationId
from modelyard_events.node import NodeApproved, NodeCordoned, NodeFacts, NodeIncarnationStarted, NodeRegistered
from modelyard_projections.fleet import Cordoned, Fleet
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.contract import Message
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.errors import ConflictError, IdempotencyError, UnavailableError


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with in_memory("test", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield runtime


def born(node: str) -> list[AnyEvent]:
    facts = NodeFacts(address="127.0.0.1:1")
    return [
        NodeRegistered(node=node, node_type="backend"),
        NodeIncarnationStarted(node=node, incarnation=IncarnationId("i-1"), facts=facts, secret_digest=""),
    ]


async def test_what_was_committed_is_folded_when_the_commit_returns(runtime: Runtime) -> None:
    committed = await runtime.journal.commit(runtime.envelope(), lambda _fleet: born("gpu-1"))
    assert committed.sequence == 2
    assert runtime.fleet.nodes.keys() == {"gpu-1"}


async def test_deciding_nothing_appends_nothing(runtime: Runtime) -> None:
    committed = await runtime.journal.commit(runtime.envelope(), lambda _fleet: [])
    assert (committed.sequence, committed.events) == (0, ())


async def test_a_repeated_command_changes_nothing_and_gets_the_first_sequence(runtime: Runtime) -> None:
    """I11."""
    envelope = runtime.envelope(command="c-1")
    first = await runtime.journal.commit(envelope, lambda _fleet: born("gpu-1"))
    again = await runtime.journal.commit(envelope, lambda _fleet: born("gpu-2"))
    assert again.repeated
    assert again.sequence == first.sequence
    assert "gpu-2" not in runtime.fleet.nodes


async def test_one_idempotency_key_with_another_request_is_refused(runtime: Runtime) -> None:
    await runtime.journal.commit(runtime.envelope(command="k", request_digest="a"), lambda _fleet: born("gpu-1"))
    with pytest.raises(IdempotencyError):
        await runtime.journal.commit(runtime.envelope(command="k", request_digest="b"), lambda _fleet: born("gpu-2"))


async def test_an_append_that_could_not_be_made_is_never_called_done() -> None:
    """I10: a full log and one that is away refuse, and nothing is folded that isn't there."""
    async with in_memory("test", MemoryLog(bytes_max=100), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        with pytest.raises(UnavailableError, match="100 bytes"):
            await runtime.journal.commit(runtime.envelope(), lambda _fleet: born("gpu-1"))
        runtime.journal.attach(None)
        with pytest.raises(UnavailableError, match="nothing was done"):
            await runtime.journal.commit(runtime.envelope(), lambda _fleet: born("gpu-1"))
        assert runtime.fleet.sequence == 0


async def test_an_event_that_cannot_be_read_is_not_passed_over(runtime: Runtime) -> None:
    """X20: what it says isn't known, so nothing is folded after it and nothing is decided without it."""
    assert runtime.log is not None
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: born("gpu-1"))
    log, before = runtime.log, runtime.fleet.sequence
    await log.append([Message("modelyard.log.fleet", "e-1", b'{"event":{"type":"fleet.to_come.v9"}}', 0)])
    async with asyncio.timeout(5):
        await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "test-runtime"])
    assert str(before + 1) in (runtime.feed.failure or "")
    assert (runtime.ready, runtime.fleet.sequence) == (False, before)
    with pytest.raises(UnavailableError):
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: [NodeApproved(node="gpu-1")])


async def test_a_refused_command_leaves_no_trace(runtime: Runtime) -> None:
    def refuse(_fleet: Fleet) -> Sequence[AnyEvent]:
        raise ConflictError("no")

    with pytest.raises(ConflictError):
        await runtime.journal.commit(runtime.envelope(), refuse)
    assert runtime.fleet.sequence == 0


async def test_a_decider_that_was_overtaken_decides_again_on_the_newer_fleet(runtime: Runtime) -> None:
    """X21: of many deciders on one state, each decides on what the one before it left."""
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: born("gpu-1"))
    decided: list[int] = []

    def cordon_once(fleet: Fleet) -> Sequence[AnyEvent]:
        decided.append(fleet.sequence)
        already = isinstance(fleet.nodes[next(iter(fleet.nodes))].intent, Cordoned)
        return [] if already else [NodeCordoned(node="gpu-1")]

    results = await asyncio.gather(*[runtime.journal.commit(runtime.envelope(), cordon_once) for _ in range(20)])
    assert sum(bool(result.events) for result in results) == 1
    assert len(decided) > 20, "the losers had to decide again"
    assert runtime.fleet.sequence == 3


async def test_independent_commands_side_by_side_all_succeed(runtime: Runtime) -> None:
    async def admit(node: str) -> None:
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: born(node))
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: [NodeApproved(node=node)])

    await asyncio.gather(*[admit(f"gpu-{number}") for number in range(50)])
    assert {node.admission for node in runtime.fleet.nodes.values()} == {"approved"}
