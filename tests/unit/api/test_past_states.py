"""The API's queries at any moment, whole states, and what differs between two (H3)."""

import random
from typing import Any

import httpx
import msgspec
import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import LabelKey, NodeName, ReplicaId
from modelyard_events.node import NodeCordoned, NodeLabelsChanged
from modelyard_events.reservation import ReservationResized
from modelyard_events.telemetry import Heartbeat, RouterReport
from modelyard_projections.fleet import Fleet
from modelyard_projections.hashing import StateHash
from modelyard_projections.snapshot import decode_fleet, encode_fleet
from modelyard_services.api import past_states, views
from modelyard_services.api.difference import difference
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.ending import end
from tests.support.given import (
    GIB,
    a_model,
    a_pending_node,
    a_ready_replica,
    an_approved_node,
    incarnation_of,
)
from tests.support.histories import Historian

LISTS = ("nodes", "models", "replicas", "reservations", "schedules")


async def happened(runtime: Runtime, *events: AnyEvent) -> int:
    """Those events, in one batch; its last sequence."""
    return (await runtime.journal.commit(runtime.envelope(), lambda _fleet: list(events))).sequence


async def ended(runtime: Runtime, replica: str) -> int:
    """The replica's end; its last sequence."""
    committed = await runtime.journal.commit(
        runtime.envelope(), lambda fleet: end(fleet, [ReplicaId(replica)], reason="requested")
    )
    return committed.sequence


def a_label(key: str, value: str) -> AnyEvent:
    return NodeLabelsChanged(node=NodeName("n1"), changed={LabelKey(key): value})


async def told(client: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await client.get(f"/api/v1{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(client: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(f"/api/v1{path}", params=query)
    assert answer.status_code == 400, answer.text
    problem: dict[str, Any] = answer.json()
    return problem


async def test_every_query_tells_what_was(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H3: a node, a model and its replica, before they were and after they were gone."""
    nothing = 0
    there = await happened(runtime, *an_approved_node("n1"), *a_model(), *a_ready_replica("r-1"))
    gone = await ended(runtime, "r-1")
    for path in LISTS:
        before, then = await told(client, f"/{path}", at=nothing), await told(client, f"/{path}", at=there)
        assert (before["items"], before["sequence"]) == ([], nothing)
        assert then["sequence"] == there
    assert [one["id"] for one in (await told(client, "/replicas", at=there))["items"]] == ["r-1"]
    assert (await told(client, "/replicas", at=gone))["items"] == (await told(client, "/replicas"))["items"] == []
    assert (await told(client, "/replicas/r-1", at=there))["state"] == "ready"
    assert (await told(client, "/nodes/n1", at=there))["vram_reserved"] == GIB
    assert (await told(client, "/models/m", at=there))["ready"] == 1
    assert (await client.get("/api/v1/models/m", params={"at": nothing})).status_code == 404
    assert (await told(client, "/state/hash", at=gone))["hash"] == StateHash.of(runtime.fleet).text


async def test_the_past_has_no_telemetry(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H3, N9: what is measured now says nothing of then."""
    there = await happened(runtime, *an_approved_node("n1"), *a_model(), *a_ready_replica("r-1"))
    now_ns = runtime.clock.monotonic_ns()
    heartbeat = Heartbeat(NodeName("n1"), incarnation_of("n1"), there, ram_free=5, disk_free=7)
    runtime.demand.hear_node(heartbeat, now_ns=now_ns)
    runtime.demand.hear_router(RouterReport("x", there, {ReplicaId("r-1"): 3}, {ReplicaId("r-1"): 9}), now_ns=now_ns)
    replica, node = await told(client, "/replicas/r-1"), await told(client, "/nodes/n1")
    assert (replica["in_flight"], node["ram_free"]) == (3, 5)
    assert replica["last_used"] is not None
    replica, node = await told(client, "/replicas/r-1", at=there), await told(client, "/nodes/n1", at=there)
    assert (replica["in_flight"], replica["last_used"]) == (None, None)
    assert (node["ram_free"], node["disk_free"], node["last_heartbeat"]) == (None, None, None)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("99", "the log ends at sequence"),
        ("-1", "neither a sequence nor a time"),
        ("1" * 30, "no sequence is that long"),
        ("²", "neither a sequence nor a time"),
        ("yesterday", "neither a sequence nor a time"),
        ("2026-01-31T12:00:00", "needs its zone"),
        ("2999-01-31T12:00:00Z", "still to come"),
    ],
)
async def test_what_is_no_moment_is_refused_by_its_field(
    at: str, says: str, runtime: Runtime, client: httpx.AsyncClient
) -> None:
    await happened(runtime, *a_pending_node("n1"))
    for path, query in (("/nodes", "at"), ("/state", "at"), ("/diff", "from")):
        problem = await refused(client, path, **{query: at})
        assert (problem["code"], problem["field"], problem["value"]) == ("invalid_query", query, at)
        assert says in problem["detail"]


async def test_a_time_may_have_any_zone(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H3: also with a `+` that the client didn't escape."""
    there = await happened(runtime, *a_pending_node("n1"))
    assert (await told(client, "/state", at="2020-01-01T00:00:00+02:00"))["sequence"] == 0
    answer = await client.get("/api/v1/state?at=2020-01-01T00:00:00+02:00")
    assert answer.json()["time"] is None
    assert (await told(client, "/state"))["sequence"] == there


async def test_a_whole_state_is_told_of_one_moment(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H3: with its hash, which every replay of the log comes to."""
    there = await happened(runtime, *an_approved_node("n1"), *a_model(), *a_ready_replica("r-1"))
    expected = StateHash.of(runtime.fleet).text
    await happened(runtime, NodeCordoned(node=NodeName("n1")))
    state = await told(client, "/state", at=there)
    assert (state["sequence"], state["hash"]) == (there, expected)
    assert [node["intent"] for node in state["nodes"]] == ["schedulable"]
    assert [len(state[kind]) for kind in ("models", "replicas", "reservations")] == [1, 1, 1]
    assert (await told(client, "/state"))["nodes"][0]["intent"] == "cordoned"


async def test_a_state_too_large_for_one_answer_says_how_to_ask(
    runtime: Runtime, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_states, "STATE_ENTITIES_MAX", 1)
    await happened(runtime, *a_pending_node("n1"), *a_pending_node("n2"))
    answer = await client.get("/api/v1/state")
    assert answer.status_code == 413
    assert "with the same at" in answer.json()["detail"]


async def test_a_difference_names_fields_as_the_api_does(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H3: added, removed and changed, each with its values before and after."""
    first = await happened(runtime, *an_approved_node("n1"), *a_model(), *a_ready_replica("r-1"))
    await happened(runtime, NodeCordoned(node=NodeName("n1")), a_label("zone", "a"), *a_pending_node("n2"))
    later = await ended(runtime, "r-1")
    found = await told(client, "/diff", **{"from": first, "to": later})
    assert (found["from"]["sequence"], found["to"]["sequence"]) == (first, later)
    changes = {(one["kind"], one["name"]): one for one in found["items"]}
    node = changes["node", "n1"]
    fields = {one["field"]: (one["before"], one["after"]) for one in node["fields"]}
    assert node["change"] == "changed"
    assert fields["intent"] == ("schedulable", "cordoned")
    assert fields["labels.zone.value"] == (None, "a")
    assert fields["vram_reserved"] == (GIB, 0)
    assert fields["gpus.0.vram_reserved"] == (GIB, 0)
    assert "sequence" not in fields
    assert (changes["replica", "r-1"]["change"], changes["node", "n2"]["change"]) == ("removed", "added")
    only = await told(client, "/diff", **{"from": first, "to": later, "kind": "replica"})
    assert [one["name"] for one in only["items"]] == ["r-1"]
    backwards = await refused(client, "/diff", **{"from": later, "to": first})
    assert backwards["field"] == "to"


async def test_what_a_replica_holds_is_part_of_it(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H3, R3: a reservation that was resized changes nothing of the replica's own state, but what it is shown with."""
    await happened(runtime, *an_approved_node("n1"), *a_model(), *a_ready_replica("r-1"))
    held = runtime.fleet.replicas[ReplicaId("r-1")].reservation
    sizes = (GIB, 2 * GIB)
    resized = [ReservationResized(node=NodeName("n1"), reservation=held, vram={0: size}) for size in sizes]
    first, later = [await happened(runtime, event) for event in resized]
    found = await told(client, "/diff", **{"from": first, "to": later, "kind": "replica"})
    assert [(one["name"], one["fields"]) for one in found["items"]] == [
        ("r-1", [{"field": "vram", "before": GIB, "after": 2 * GIB}])
    ]


async def test_a_difference_comes_in_pages(runtime: Runtime, client: httpx.AsyncClient) -> None:
    for number in range(5):
        await happened(runtime, *a_pending_node(f"n{number}"))
    names: list[str] = []
    after: str | None = None
    while True:
        query = {"from": 0, "limit": 2} | ({} if after is None else {"after": after})
        found = await told(client, "/diff", **query)
        names += [one["name"] for one in found["items"]]
        after = found["next"]
        if after is None:
            break
    assert names == [f"n{number}" for number in range(5)]


def shown(fleet: Fleet) -> dict[tuple[str, str], Any]:
    """Every entity's document, made without any shortcut."""
    nodes = [views.node_view(node, fleet.settings, None, now_ns=0, monotonic_ns=0) for node in fleet.nodes.values()]
    models = [views.model_view(model, fleet) for model in fleet.models.values()]
    replicas = [views.replica_view(one, fleet, None, monotonic_ns=0) for one in fleet.replicas.values()]
    held = [views.reservation_view(one) for one in fleet.reservations.values()]
    documents: dict[tuple[str, str], Any] = {}
    documents |= {("node", one.name): msgspec.to_builtins(one, str_keys=True) for one in nodes}
    documents |= {("model", one.name): msgspec.to_builtins(one, str_keys=True) for one in models}
    documents |= {("replica", one.id): msgspec.to_builtins(one, str_keys=True) for one in replicas}
    documents |= {("reservation", one.id): msgspec.to_builtins(one, str_keys=True) for one in held}
    for document in documents.values():
        document.pop("sequence", None)
    return documents


@pytest.mark.parametrize("seed", range(4))
def test_a_difference_tells_every_entity_that_differs_and_no_other(seed: int) -> None:
    """H3: of any two states of a random history, held against the documents themselves."""
    historian = Historian(random.Random(seed).choice)  # noqa: S311 - a history, not a secret
    fleets = [Fleet()]
    for _ in range(12):
        batches = [historian.batch() for _ in range(10)]
        fleet = decode_fleet(encode_fleet(fleets[-1]))
        for batch in batches:
            fleet.apply_all(batch)
        fleet.take_touched()
        fleets.append(fleet)
    for before in fleets[::3]:
        for after in fleets[::2]:
            old, new = shown(before), shown(after)
            expected = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
            found = {(one.kind, one.name) for one in difference(before, after)}
            assert {key for key in found if key[0] in {"node", "model", "replica", "reservation"}} == expected
