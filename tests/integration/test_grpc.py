"""gRPC `modelyard.v1.Scheduler` on a real NATS server: leases, typed errors, watching from a sequence, health."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final, cast

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from modelyard_events.fleet import FleetTokenCreated
from modelyard_events.model import ModelScheduleSet
from modelyard_events.node import NodeLost, NodeRecovered
from modelyard_events.spec import Schedule
from modelyard_services.errors import STATUS_OF
from modelyard_services.policy.access import Access
from modelyard_services.policy.tokens import digest_of
from modelyard_services.router.failures import DETAIL_KEY, GRPC_STATUS
from modelyard_services.router.main import scheduler
from modelyard_services.router.proto.modelyard.v1 import scheduler_pb2 as pb
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2_grpc import SchedulerStub
from modelyard_services.router.router import Router
from tests.support.given import GIB, a_drain, a_model, a_ready_replica, incarnation_of, some_spec
from tests.support.nats_servers import Servers
from tests.support.scheduler_code import CONTRACT, SERVICES, generate
from tests.support.yard import Yard, a_router, a_yard, leases_on

CLIENTS: Final = Path(__file__).parents[2] / "docs" / "clients.md"
NO_PROXY = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


@pytest.fixture
async def yard(nats_r1: Servers) -> AsyncIterator[Yard]:
    await nats_r1.forget()
    async with a_yard(nats_r1.url) as yard:
        yield yard


@contextlib.asynccontextmanager
async def a_channel(yard: Yard) -> AsyncIterator[tuple[Router, grpc.aio.Channel]]:
    async with (
        a_router(yard.url) as router,
        scheduler(router, "127.0.0.1:0", access=Access(router.runtime.fleet, open_on_loopback=True)) as address,
        grpc.aio.insecure_channel(address, options=NO_PROXY) as channel,
    ):
        yield router, channel


async def test_a_lease_is_routed_renewed_and_released_once(yard: Yard) -> None:
    """T2: it expires unless renewed, for nothing tells when its holder dies."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", node="n1")
    async with a_channel(yard) as (router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        lease = await stub.Route(pb.RouteRequest(model="m"))
        assert (lease.node, lease.replica, lease.model) == ("n1", "r-1", "m")
        assert lease.address.startswith("127.0.0.1:")
        assert leases_on(router, "r-1") == 1
        assert lease.choice.rule == "least_busy"
        renewed = await stub.Renew(pb.RenewRequest(lease=lease.lease))
        assert renewed.expires_at.ToNanoseconds() > lease.expires_at.ToNanoseconds()
        assert (await stub.Release(pb.ReleaseRequest(lease=lease.lease))).released
        assert not (await stub.Release(pb.ReleaseRequest(lease=lease.lease))).released
        assert leases_on(router, "r-1") == 0
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.Renew(pb.RenewRequest(lease=lease.lease))
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_lease_says_why_it_is_on_that_replica(yard: Yard) -> None:
    """T3."""
    await yard.model(nodes=["n1", "n2"])
    await yard.commit(ModelScheduleSet(model="m", schedule=Schedule(affinity="session"), source="api"))
    for number, node in enumerate(("n1", "n2")):
        await yard.ready(f"r-{number}", node=node)
    async with a_channel(yard) as (_router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        leases = [await stub.Route(pb.RouteRequest(model="m", session="s")) for _ in range(3)]
        assert [lease.choice.rule for lease in leases] == ["session"] * 3
        assert leases[0].replica == leases[1].replica != leases[2].replica
        assert leases[0].choice.why == "the session's own replica; 0 in flight, the least busy has 0"
        assert leases[2].choice.why.startswith(f"next for the session, {leases[0].replica} can't take it now")


async def test_errors_bear_a_status_and_their_details(yard: Yard) -> None:
    """T8."""
    await yard.model(nodes=["n1"])
    async with a_channel(yard) as (_router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        for request, status, code in (
            (pb.RouteRequest(model="nobody"), grpc.StatusCode.NOT_FOUND, "model_unknown"),
            (pb.RouteRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
            (pb.RouteRequest(model="m", wait_seconds=-1), grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
            (pb.RouteRequest(model="m", wait_seconds=0), grpc.StatusCode.UNAVAILABLE, "model_loading"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Route(request)
            assert failed.value.code() is status
            detail = _detail(failed.value)
            assert (detail.code, detail.detail) == (code, failed.value.details())
        with pytest.raises(grpc.aio.AioRpcError) as loading:
            await stub.Route(pb.RouteRequest(model="m", wait_seconds=0))
        detail = _detail(loading.value)
        assert json.loads(detail.extra_json)["node"] == "n1"
        assert detail.retryable
        assert detail.retry_after_seconds >= 5


async def test_a_model_that_cannot_be_placed_says_whether_waiting_helps(yard: Yard) -> None:
    """T8, P5: what no change of load can help, what frees one day, and what is too much at once."""
    await yard.model(nodes=["n1"])
    await yard.commit(*a_model("huge", some_spec(vram=900 * GIB)))
    await yard.commit(*a_model("late", some_spec(vram=8 * GIB)))
    await yard.commit(*a_ready_replica("r-1", node="n1", vram={0: 20 * GIB}, pinned=True))
    async with a_channel(yard) as (_router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        for model, status, code, retryable in (
            ("huge", grpc.StatusCode.FAILED_PRECONDITION, "unsatisfiable", False),
            ("late", grpc.StatusCode.RESOURCE_EXHAUSTED, "no_capacity", True),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Route(pb.RouteRequest(model=model, wait_seconds=0))
            assert failed.value.code() is status
            detail = _detail(failed.value)
            assert (detail.code, detail.retryable) == (code, retryable)
            assert "vram (short by" in detail.detail


async def test_once_a_token_exists_leases_need_an_operators(yard: Yard) -> None:
    """N4, T8: a viewer may watch."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", node="n1")
    for name, role in (("eve", "viewer"), ("bob", "operator")):
        await yard.commit(FleetTokenCreated(name=name, role=role, digest=digest_of(name)))  # type: ignore[arg-type]
    async with a_channel(yard) as (_router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        request = pb.RouteRequest(model="m")
        for token, status in ((None, "UNAUTHENTICATED"), ("eve", "PERMISSION_DENIED")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Route(request, metadata=_bearer(token))
            assert refused.value.code().name == status
        assert (await stub.Route(request, metadata=_bearer("bob"))).replica == "r-1"
        watching = stub.Watch(pb.WatchRequest(after=0), metadata=_bearer("eve"))
        assert (await watching.read()).model == "m"
        watching.cancel()


async def test_changes_are_told_in_order_each_once_from_any_sequence(yard: Yard) -> None:
    """DESIGN 5: what was missed, then what comes."""
    await yard.model(nodes=["n1"])
    await yard.model("other")
    async with a_channel(yard) as (_router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        watching = stub.Watch(pb.WatchRequest(after=0, model="m"))
        defined = await watching.read()
        assert (defined.model, defined.changed.type) == ("m", "model.defined.v1")
        await yard.ready("r-1", node="n1")
        await yard.commit(*a_drain("r-1", node="n1"))
        told = [await asyncio.wait_for(watching.read(), 10) for _ in range(3)]
        states = [pb.ReplicaChange.State.Name(change.replica.state) for change in told]
        assert states == ["STATE_PLACED", "STATE_READY", "STATE_DRAINING"]
        assert [change.sequence for change in told] == sorted(change.sequence for change in told)
        assert (told[0].replica.node, told[2].replica.reason) == ("n1", "requested")
        watching.cancel()
        again = stub.Watch(pb.WatchRequest(after=told[1].sequence))
        assert await asyncio.wait_for(again.read(), 10) == told[2]
        again.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as beyond:
            await stub.Watch(pb.WatchRequest(after=10**9)).read()
        assert beyond.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_lost_nodes_replicas_are_told_as_unreachable_until_it_is_heard(yard: Yard) -> None:
    """N9: to whoever watched from the start, and to whoever asks later."""
    await yard.model(nodes=["n1", "n2"])
    await yard.model("other", nodes=[])
    for replica, node, model in (("r-1", "n1", "m"), ("r-2", "n2", "m"), ("r-3", "n1", "other")):
        await yard.ready(replica, node=node, model=model)
    async with a_channel(yard) as (router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        since = router.runtime.fleet.sequence
        watching = stub.Watch(pb.WatchRequest(after=since, model="m"))
        await yard.commit(*a_drain("r-1", node="n1"))
        life = incarnation_of("n1")
        await yard.commit(NodeLost(node="n1", incarnation=life, silent_seconds=60, grace_seconds=600))
        await yard.commit(NodeRecovered(node="n1", incarnation=life))
        told = [await asyncio.wait_for(watching.read(), 10) for _ in range(3)]
        states = [(change.replica.replica, pb.ReplicaChange.State.Name(change.replica.state)) for change in told]
        assert states == [("r-1", f"STATE_{state}") for state in ("DRAINING", "UNREACHABLE", "DRAINING")]
        assert (told[1].replica.reason, told[2].replica.reason) == ("node.lost.v1", "node.recovered.v1")
        watching.cancel()
        later = stub.Watch(pb.WatchRequest(after=since))
        everything = [await asyncio.wait_for(later.read(), 10) for _ in range(5)]
        assert {change.replica.replica for change in everything} == {"r-1", "r-3"}
        assert [change for change in everything if change.model == "m"] == told
        later.cancel()


async def test_until_the_fold_has_caught_up_nobody_is_let_in_nor_turned_away(yard: Yard) -> None:
    """N4, T8: before that no token is known."""
    async with a_channel(yard) as (router, channel):
        stub = SchedulerStub(channel)  # type: ignore[no-untyped-call]  # generated
        router.runtime.feed.caught_up = False
        for call in (stub.Route(pb.RouteRequest(model="m")), stub.Watch(pb.WatchRequest(after=0)).read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_health_and_reflection_answer(yard: Yard) -> None:
    async with a_channel(yard) as (router, channel):
        health = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(5):
            while (await health.Check(health_pb2.HealthCheckRequest())).status != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        router._reporter._heard_ns = 0  # as after two seconds in which nobody heard it
        assert router.problems
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = await stub.ServerReflectionInfo(asked).read()
        assert "modelyard.v1.Scheduler" in {one.name for one in answer.list_services_response.service}


def test_the_generated_code_is_what_the_contract_gives(tmp_path: Path) -> None:
    generate(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*"))
    assert len(made) == 3
    assert all(path.parent == CONTRACT.parent for path in made)
    for path in made:
        assert (tmp_path / path).read_text() == (SERVICES / path).read_text(), f"{path} is stale"


async def test_the_client_in_the_documents_does_what_it_says(yard: Yard, capsys: pytest.CaptureFixture[str]) -> None:
    """T2, T8: whoever writes a client begins with a copy of it."""
    await yard.model(nodes=["n1"])
    await yard.ready("r-1", node="n1")
    program: dict[str, Any] = {}
    (text,) = re.findall(r"```python\n(.*?)```", CLIENTS.read_text(), re.DOTALL)
    exec(text, program)  # noqa: S102 - our own document
    async with (
        a_router(yard.url) as router,
        scheduler(router, "127.0.0.1:0", access=Access(router.runtime.fleet, open_on_loopback=True)) as address,
    ):
        await asyncio.to_thread(program["ask"], address, "m")
        assert leases_on(router, "r-1") == 0
        await asyncio.to_thread(program["ask"], address, "nobody")
    served, refused = capsys.readouterr().out.splitlines()
    assert served.startswith("send it to 127.0.0.1:")
    assert refused.startswith("NOT_FOUND model_unknown there is no model 'nobody'")


def test_the_documents_tell_each_code_with_its_statuses() -> None:
    """T8."""
    rows = re.findall(r"^\| (`[a-z_`, ]+) \| ([0-9, ]+) \| ([A-Z_`, ]+) \|", CLIENTS.read_text(), re.MULTILINE)
    told = set()
    for codes, statuses, names in rows:
        for number, code in enumerate(re.findall(r"[a-z_]+", codes)):
            status, name = re.findall(r"[0-9]+", statuses), re.findall(r"[A-Z_]+", names)
            assert STATUS_OF[code] == int(status[min(number, len(status) - 1)]), code
            assert GRPC_STATUS[code].name == name[min(number, len(name) - 1)], code
            told.add(code)
    # Those that come of commands alone, and of a watch, are told elsewhere.
    assert GRPC_STATUS.keys() - told == {"not_found", "contended", "log_unavailable", "log_replaced"}


def test_every_status_of_grpc_is_of_a_known_error() -> None:
    """T8."""
    assert GRPC_STATUS.keys() <= STATUS_OF.keys() | {"log_unavailable", "log_replaced"}


def _detail(failed: grpc.aio.AioRpcError) -> pb.ErrorDetail:
    # Pairs, whatever the stubs say.
    trailing = cast("Iterable[tuple[str, bytes]]", failed.trailing_metadata())
    return pb.ErrorDetail.FromString(dict(trailing)[DETAIL_KEY])


def _bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)
