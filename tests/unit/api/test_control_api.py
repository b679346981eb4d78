"""The control API over the in-memory log: routes, commands, errors, access, idempotency (DESIGN 6)."""

from datetime import datetime, timedelta

import httpx
import msgspec
import pytest
from openapi_spec_validator import validate

from modelyard_events.envelope import Entry
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelDefined
from modelyard_events.node import NodeLost, NodeRecovered
from modelyard_events.spec import revision_of
from modelyard_services import errors
from modelyard_services.effects.runtime import Runtime
from modelyard_services.effects.tracing.spans import valid
from tests.support.api import client_of
from tests.support.given import (
    GIB,
    a_model,
    a_pending_node,
    a_ready_replica,
    an_approved_node,
    incarnation_of,
    some_spec,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NODE = "rack/1:gpu.a"
NODE_PATH = "/api/v1/nodes/rack%2F1%3Agpu.a"


async def _pending(runtime: Runtime, node: str = NODE) -> None:
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: a_pending_node(node))


async def _approved(runtime: Runtime, node: str = NODE) -> None:
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: an_approved_node(node))


async def test_names_with_slash_colon_and_dot_work_in_every_route(runtime: Runtime, client: httpx.AsyncClient) -> None:
    await _pending(runtime)
    assert (await client.get(NODE_PATH)).json()["name"] == NODE
    assert (await client.post(f"{NODE_PATH}/approve")).status_code == 200
    put = await client.put(f"{NODE_PATH}/labels/nvidia.com%2Fgpu", json={"value": "yes"})
    assert put.status_code == 200, put.text
    assert (await client.get(NODE_PATH)).json()["labels"]["nvidia.com/gpu"] == {"value": "yes", "owner": "operator"}
    assert (await client.delete(f"{NODE_PATH}/labels/nvidia.com%2Fgpu")).json()["changed"]


async def test_a_model_whose_name_ends_like_a_route_is_only_a_model(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    spec = some_spec()
    name = ModelName("a/schedule")
    await runtime.journal.commit(
        runtime.envelope(), lambda _fleet: [ModelDefined(model=name, spec=spec, revision=revision_of(spec))]
    )
    assert (await client.get("/api/v1/models/a%2Fschedule")).json()["name"] == name
    assert (await client.get("/api/v1/models/a/schedule")).json()["code"] == "model_unknown"


async def test_a_command_answers_with_the_sequence_to_read_at(runtime: Runtime, client: httpx.AsyncClient) -> None:
    await _pending(runtime)
    answer = (await client.post(f"{NODE_PATH}/approve")).json()
    read = await client.get(NODE_PATH, params={"min_seq": answer["sequence"]})
    assert read.json()["admission"] == "approved"
    assert int(read.headers["modelyard-sequence"]) >= answer["sequence"]


@pytest.mark.parametrize("given", [TRACE, "00-nonsense", None])
async def test_a_commands_events_bear_its_trace_or_a_valid_one_of_their_own(
    runtime: Runtime, client: httpx.AsyncClient, given: str | None
) -> None:
    """H1: whatever the client sent, the log holds a W3C traceparent."""
    await _pending(runtime)
    await client.post(f"{NODE_PATH}/approve", headers={"traceparent": given} if given else {})
    assert runtime.log is not None
    stored = await runtime.log.read(runtime.fleet.sequence)
    assert stored is not None
    trace = msgspec.json.decode(stored.body, type=Entry).envelope.trace
    assert valid(trace)
    assert (trace or "")[3:35] == TRACE[3:35] or given != TRACE


async def test_a_command_whose_outcome_holds_already_changes_nothing(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    await _approved(runtime)
    answer = (await client.post(f"{NODE_PATH}/approve")).json()
    assert answer == {"sequence": 3, "changed": False, "warnings": []}


async def test_a_command_held_to_an_older_state_is_refused(runtime: Runtime, client: httpx.AsyncClient) -> None:
    await _approved(runtime)
    await client.post(f"{NODE_PATH}/cordon")
    refused = await client.post(f"{NODE_PATH}/resume", headers={"if-match": '"3"'})
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
    held = await client.post(f"{NODE_PATH}/resume", headers={"if-match": '"4"'})
    assert held.status_code == 200


async def test_a_retry_under_the_same_key_gets_the_first_answer(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """I11."""
    await _approved(runtime)
    key = {"idempotency-key": "k-1"}
    body = {"vram": "1GiB", "holder": "training"}
    first = await client.post(f"{NODE_PATH}/reservations", json=body, headers=key)
    again = await client.post(f"{NODE_PATH}/reservations", json=body, headers=key)
    assert first.status_code == 201, first.text
    assert again.json() == first.json()
    assert len((await client.get("/api/v1/reservations")).json()["items"]) == 1
    other = await client.post(f"{NODE_PATH}/reservations", json={**body, "vram": "2GiB"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


async def test_operator_reservations_hold_vram_until_they_are_released(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """R3."""
    await _approved(runtime)
    wanted = {"vram": "20GiB", "holder": "training", "reason": "a job", "seconds": 3_600}
    made = await client.post(f"{NODE_PATH}/reservations", json=wanted)
    assert (await client.get(NODE_PATH)).json()["vram_free"] == 4 * GIB
    (listed,) = (await client.get("/api/v1/reservations")).json()["items"]
    assert (listed["holder"], listed["reason"], listed["vram"]) == ("training", "a job", 20 * GIB)
    assert datetime.fromisoformat(listed["until"]) - datetime.fromisoformat(listed["since"]) == timedelta(hours=1)
    refused = await client.post(f"{NODE_PATH}/reservations", json={"vram": "20GiB", "holder": "more"})
    assert (refused.status_code, refused.json()["code"]) == (503, "no_capacity")
    released = await client.delete(f"{NODE_PATH}/reservations/{made.json()['reservation']}")
    assert released.status_code == 200
    assert (await client.get(NODE_PATH)).json()["vram_free"] == 24 * GIB


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", "/vram-budget", {"value": "-3GB"}, "value"),
        ("PUT", "/labels/gpu.vram", {"value": "x"}, "label"),
        ("PUT", "/labels/odd", {"value": "a,b"}, "label odd"),
        ("PATCH", "/labels", {"fine": "yes", "node.name": "x"}, "label"),
        ("PUT", "/max-replicas-per-model", {"value": 0}, "max_replicas_per_model"),
        ("POST", "/reservations", {"vram": "lots", "holder": "me"}, "vram"),
        ("PUT", "/watchdog", {"max_loaded_models": 901}, "max_loaded_models"),
        ("PATCH", "/watchdog", {"reclaim_memory": 1}, "reclaim_memory"),
        ("PATCH", "/watchdog", {"max_loaded_models": 1, "lost_after_seconds": 60}, "lost_after_seconds"),
    ],
)
async def test_bad_input_names_the_field_and_changes_nothing(
    runtime: Runtime, client: httpx.AsyncClient, method: str, path: str, body: object, field: str
) -> None:
    await _approved(runtime)
    refused = await client.request(method, NODE_PATH + path, json=body)
    assert refused.status_code == 400, refused.text
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert (refused.json()["code"], refused.json()["field"]) == ("invalid_request", field)
    assert runtime.fleet.sequence == 3


@pytest.mark.parametrize("body", [{"value": "x", "extra": 1}, {}, {"value": 3}, [], "text"])
async def test_unknown_fields_and_wrong_types_are_refused(
    runtime: Runtime, client: httpx.AsyncClient, body: object
) -> None:
    await _approved(runtime)
    refused = await client.put(f"{NODE_PATH}/labels/tier", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")


async def test_many_labels_are_set_all_or_none(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """N5."""
    await _approved(runtime)
    await client.patch(f"{NODE_PATH}/labels", json={"tier": "gpu", "zone": "a"})
    await client.patch(f"{NODE_PATH}/labels", json={"zone": None, "rack": "7"})
    labels = (await client.get(NODE_PATH)).json()["labels"]
    assert {key for key, label in labels.items() if label["owner"] == "operator"} == {"tier", "rack"}


async def test_a_plan_appends_nothing_and_apply_appends_it_once(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """S3."""
    await _approved(runtime)
    text = "models: [{name: m, command: [serve], vram: 1GiB}]\nschedules: [{model_name: m, min_replicas: 2}]"
    body = {"documents": [{"name": "fleet.yaml", "text": text}]}
    before = runtime.fleet.sequence
    plan = (await client.post("/api/v1/plan", json=body)).json()
    assert [(each["kind"], each["change"]) for each in plan["changes"]] == [("model", "added"), ("schedule", "added")]
    assert [each["node"] for each in plan["consequences"]["placements"]] == [NODE]
    (refused,) = plan["consequences"]["unplaced"]
    assert (refused["model"], refused["missing"], refused["document"], refused["line"]) == ("m", 1, "fleet.yaml", 2)
    assert (runtime.fleet.sequence, plan["sequence"]) == (before, before)
    applied = (await client.post("/api/v1/apply", json=body)).json()
    assert (applied["changed"], applied["sequence"]) == (True, before + 2)
    assert applied["changes"] == plan["changes"]
    again = (await client.post("/api/v1/apply", json=body)).json()
    assert (again["changed"], again["changes"], runtime.fleet.sequence) == (False, [], before + 2)


async def test_faults_of_a_plan_are_all_told_and_nothing_is_applied(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """S2."""
    documents = [
        {"name": "torn.yaml", "text": "models: ["},
        {"name": "fleet.yaml", "text": "- model_name: m\n  min_replicas: 3\n  max_replicas: 2\n- model_name: ok\n"},
    ]
    for path in ("/api/v1/plan", "/api/v1/apply"):
        refused = await client.post(path, json={"documents": documents})
        assert refused.status_code == 400, refused.text
        told = [(error["document"], error["line"], error["field"]) for error in refused.json()["errors"]]
        assert told == [("torn.yaml", 1, "document"), ("fleet.yaml", 2, "min_replicas")]
        assert (await client.post(path, json={"documents": []})).json()["field"] == "documents"
    assert runtime.fleet.sequence == 0


async def test_deleting_what_is_not_there_says_so(client: httpx.AsyncClient) -> None:
    """X28."""
    for path in ("/api/v1/nodes/nobody", "/api/v1/tokens/nobody", "/api/v1/nodes/n/reservations/v-1"):
        missing = await client.delete(path)
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")


async def test_an_override_shows_whose_it_is_and_what_the_worker_says(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """N11."""
    await _approved(runtime)
    await client.put(f"{NODE_PATH}/max-replicas-per-model", json={"value": 4})
    await client.put(f"{NODE_PATH}/vram-budget", json={"value": "50%"})
    node = (await client.get(NODE_PATH)).json()
    assert node["max_replicas_per_model"] == {"value": 4, "source": "operator", "worker_value": 1}
    assert node["vram_budget"] == {"value": "50%", "source": "operator", "worker_value": None}
    assert node["vram_free"] == 12 * GIB
    assert node["labels"]["node.replica-slots"]["value"] == "4"
    await client.delete(f"{NODE_PATH}/max-replicas-per-model")
    assert (await client.get(NODE_PATH)).json()["max_replicas_per_model"]["source"] == "worker"


async def test_a_nodes_watchdog_shows_whose_each_figure_is_and_what_the_fleet_says(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """C8, N11, X28: patched, replaced, given back; a figure that isn't named is the fleet's."""
    await _approved(runtime)
    await client.patch("/api/v1/settings", json={"idle_timeout_seconds": 600, "max_loaded_models": 4})
    await client.patch(f"{NODE_PATH}/watchdog", json={"idle_timeout_seconds": 0, "reclaim_memory": True})
    shown = (await client.get(NODE_PATH)).json()["watchdog"]
    assert shown == {
        "idle_timeout_seconds": {"value": 0, "source": "node", "fleet_value": 600},
        "busy_timeout_seconds": {"value": 0, "source": "fleet", "fleet_value": 0},
        "max_loaded_models": {"value": 4, "source": "fleet", "fleet_value": 4},
        "reclaim_memory": {"value": True, "source": "node", "fleet_value": False},
    }
    await client.put(f"{NODE_PATH}/watchdog", json={"max_loaded_models": 1, "busy_timeout_seconds": None})
    shown = (await client.get(NODE_PATH)).json()["watchdog"]
    assert shown["max_loaded_models"] == {"value": 1, "source": "node", "fleet_value": 4}
    assert {name for name, figure in shown.items() if figure["source"] == "node"} == {"max_loaded_models"}
    again = await client.put(f"{NODE_PATH}/watchdog", json={"max_loaded_models": 1})
    assert (again.status_code, again.json()["changed"]) == (200, False)
    assert (await client.delete(f"{NODE_PATH}/watchdog")).status_code == 200
    missing = await client.delete(f"{NODE_PATH}/watchdog")
    assert (missing.status_code, missing.json()["code"], missing.json()["field"]) == (404, "not_found", "watchdog")


async def test_a_replica_shows_the_timeouts_that_hold_for_it_and_who_set_them(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """C8: schedule, node, fleet."""
    await _approved(runtime)
    await client.put("/api/v1/models/m", json={"command": ["serve"], "vram": "1GiB"})
    await client.put("/api/v1/models/m/schedule", json={"busy_timeout_seconds": 30})
    await client.patch(f"{NODE_PATH}/watchdog", json={"busy_timeout_seconds": 60, "idle_timeout_seconds": 90})
    assert (await client.post("/api/v1/models/m/replicas", json={})).is_success
    (replica,) = (await client.get("/api/v1/replicas")).json()["items"]
    assert replica["watchdog"] == {
        "idle_timeout_seconds": {"value": 90, "source": "node"},
        "busy_timeout_seconds": {"value": 30, "source": "schedule"},
    }


async def test_lists_come_in_pages_from_one_sequence(runtime: Runtime, client: httpx.AsyncClient) -> None:
    for number in range(5):
        await _approved(runtime, f"n{number}")
    first = (await client.get("/api/v1/nodes", params={"limit": 2})).json()
    rest = (await client.get("/api/v1/nodes", params={"limit": 9, "after": first["next"]})).json()
    assert [node["name"] for node in first["items"] + rest["items"]] == [f"n{number}" for number in range(5)]
    assert rest["next"] is None
    assert first["sequence"] == runtime.fleet.sequence


async def test_every_request_needs_a_token_once_there_is_one(runtime: Runtime, client: httpx.AsyncClient) -> None:
    created = (await client.post("/api/v1/tokens", json={"name": "ops", "role": "admin"})).json()
    assert (await client.get("/api/v1/nodes")).status_code == 401
    token = {"authorization": f"Bearer {created['token']}"}
    assert (await client.get("/api/v1/nodes", headers=token)).status_code == 200
    assert created["token"] not in str(runtime.fleet.tokens)


async def test_roles_allow_what_they_say(runtime: Runtime, client: httpx.AsyncClient) -> None:
    await _approved(runtime)
    admin = (await client.post("/api/v1/tokens", json={"name": "root", "role": "admin"})).json()["token"]
    as_admin = {"authorization": f"Bearer {admin}"}
    viewer = (await client.post("/api/v1/tokens", json={"name": "eyes"}, headers=as_admin)).json()["token"]
    as_viewer = {"authorization": f"Bearer {viewer}"}
    assert (await client.get(NODE_PATH, headers=as_viewer)).status_code == 200
    refused = await client.post(f"{NODE_PATH}/cordon", headers=as_viewer)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    await client.delete("/api/v1/tokens/eyes", headers=as_admin)
    assert (await client.get(NODE_PATH, headers=as_viewer)).status_code == 401


async def test_beyond_loopback_nothing_is_open_without_a_token(runtime: Runtime) -> None:
    async with client_of(runtime, open_on_loopback=False) as client:
        for path in ("/api/v1/nodes", "/readyz", "/metrics"):
            assert (await client.get(path, headers={"x-actor": "me"})).status_code == 401
        assert (await client.get("/healthz")).status_code == 200


async def test_who_did_it_is_in_the_event(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """H1."""
    actors: list[str] = []
    runtime.on_batch(lambda events, _touched: actors.extend(event.envelope.actor.name for event in events))
    await _pending(runtime)
    await client.post(f"{NODE_PATH}/approve", headers={"x-actor": "alice"})
    assert actors[-1] == "alice"


async def test_the_openapi_document_is_valid_and_names_every_route_body_and_error(client: httpx.AsyncClient) -> None:
    document = (await client.get("/api/v1/openapi.json")).json()
    validate(document)
    assert {"/api/v1/nodes/{node}", "/api/v1/nodes/{node}/labels/{key}", "/api/v1/events"} <= document["paths"].keys()
    body = document["paths"]["/api/v1/models/{model}"]["put"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/ModelBody"}
    assert "vram" in document["components"]["schemas"]["ModelBody"]["properties"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "default" in operation["responses"], path


def test_every_error_code_has_its_status() -> None:
    """T8."""

    def codes(kind: type[errors.ModelyardError]) -> set[str]:
        return {kind.code}.union(
            *[codes(child) for child in kind.__subclasses__() if child.__module__ == errors.__name__]
        )

    assert codes(errors.ModelyardError) <= errors.STATUS_OF.keys()


SPEC = {"command": ["serve", "--port", "{port}"], "vram": "10GiB"}


async def test_a_model_is_defined_scheduled_loaded_and_unloaded(runtime: Runtime, client: httpx.AsyncClient) -> None:
    await _approved(runtime)
    path = "/api/v1/models/Qwen%2FQwen3-32B%3Aq4"
    assert (await client.put(path, json=SPEC)).status_code == 200
    put = await client.put(f"{path}/schedule", json={"min_replicas": 1, "node_selector": "tier=gpu"})
    assert "no node matches tier=gpu now" in put.json()["warnings"]
    await client.put(f"{path}/schedule", json={"max_replicas": 2})
    loaded = await client.post(f"{path}/replicas", json={})
    assert loaded.status_code == 202, loaded.text
    replica = (await client.get(loaded.headers["location"])).json()
    assert (replica["model"], replica["node"], replica["state"]) == ("Qwen/Qwen3-32B:q4", NODE, "placed")
    assert (await client.get(NODE_PATH)).json()["vram_reserved"] == 10 * GIB
    ended = await client.delete(f"{path}/replicas")
    assert ended.json()["replicas"] == [replica["id"]]
    assert (await client.get("/api/v1/replicas")).json()["items"] == []
    assert (await client.get(NODE_PATH)).json()["vram_reserved"] == 0


async def test_capacity_says_how_many_more_fit_and_why_no_more(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """P1, R4: beside what lives and what is wanted."""
    await _approved(runtime)
    await client.put("/api/v1/models/a%2Fcapacity", json={**SPEC, "vram": "10GiB"})
    path = "/api/v1/models/a%2Fcapacity/capacity"
    one = (await client.get(path)).json()
    assert (one["model"], one["fits"], one["replicas"], one["min_replicas"]) == ("a/capacity", 1, 0, 0)
    await client.put(f"{NODE_PATH}/max-replicas-per-model", json={"value": 5})
    assert (await client.get(path)).json()["fits"] == 2
    for _ in range(2):
        assert (await client.post("/api/v1/models/a%2Fcapacity/replicas")).status_code == 202
    full = (await client.get(path)).json()
    assert (full["fits"], full["replicas"], full["next"]) == (0, 2, None)
    (node,) = full["items"]
    assert (node["node"], node["filter"], node["unit"]) == (NODE, "vram", "bytes")
    assert one["one_more"] == f"placed on {NODE}"
    assert "1 vram" in full["one_more"]
    assert full["one_more"].endswith(f"on {NODE}, a/capacity#0 is loading, a/capacity#1 is loading"), full["one_more"]
    assert full["unblock"].startswith("free "), full["unblock"]
    assert full["waits_for"] == []
    assert (await client.get("/api/v1/models/nobody/capacity")).json()["code"] == "model_unknown"


async def test_no_room_is_refused_with_the_whole_account(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """P5, X6."""
    await _approved(runtime)
    await client.put("/api/v1/models/huge", json={**SPEC, "vram": "100GiB"})
    refused = await client.post("/api/v1/models/huge/replicas")
    assert (refused.status_code, refused.json()["code"]) == (422, "unsatisfiable")
    assert "0/1 nodes: 1 vram" in refused.json()["detail"]
    await client.put("/api/v1/models/big", json={**SPEC, "vram": "20GiB"})
    await client.put(f"{NODE_PATH}/max-replicas-per-model", json={"value": 2})
    assert (await client.post("/api/v1/models/big/replicas")).status_code == 202
    full = await client.post("/api/v1/models/big/replicas")
    assert (full.status_code, full.json()["code"]) == (503, "no_capacity")
    assert full.headers["retry-after"]


async def test_a_load_of_a_revision_that_was_superseded_is_refused(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """T8: whoever rolls out a revision doesn't load another by accident."""
    await _approved(runtime)
    await client.put("/api/v1/models/m", json=SPEC)
    meant = (await client.get("/api/v1/models/m")).json()["revision"]
    await client.put("/api/v1/models/m", json={**SPEC, "command": ["serve", "--other"]})
    stale = await client.post("/api/v1/models/m/replicas", json={"revision": meant})
    assert (stale.status_code, stale.json()["code"], stale.json()["field"]) == (409, "stale_revision", "revision")
    assert not runtime.fleet.replicas
    in_force = (await client.get("/api/v1/models/m")).json()["revision"]
    assert (await client.post("/api/v1/models/m/replicas", json={"revision": in_force})).status_code == 202


async def test_refusals_that_the_log_is_not_told_again_are_counted(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """P5: repeats are metrics."""
    await _approved(runtime)
    await client.put("/api/v1/models/m", json={**SPEC, "vram": "100GiB"})

    async def refusals() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        found = [line for line in lines if line.startswith('modelyard_placements_refused_total{kind="unsatisfiable"}')]
        return float(found[0].split()[-1]) if found else 0.0

    await client.post("/api/v1/models/m/replicas")
    sequence, before = runtime.fleet.sequence, await refusals()
    for _ in range(3):
        assert (await client.post("/api/v1/models/m/replicas")).status_code == 422
    assert await refusals() == before + 3
    assert runtime.fleet.sequence == sequence


async def test_a_replica_whose_node_is_lost_is_unreachable_until_that_is_heard_again(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """R1, N9: a state of its own, whatever it was before."""
    life = incarnation_of("n1")
    lost = NodeLost(node="n1", incarnation=life, silent_seconds=60, grace_seconds=600)
    happened = [*an_approved_node(), *a_model(), *a_ready_replica()]
    for events, state in (
        (happened, "ready"),
        ([lost], "unreachable"),
        ([NodeRecovered(node="n1", incarnation=life)], "ready"),
    ):
        await runtime.journal.commit(runtime.envelope(), lambda _fleet, events=events: events)  # type: ignore[misc]
        assert (await client.get("/api/v1/replicas/r-1")).json()["state"] == state
        assert len((await client.get("/api/v1/replicas", params={"state": state})).json()["items"]) == 1


async def test_a_retried_load_places_one_replica(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """I11."""
    await _approved(runtime)
    await client.put("/api/v1/models/m", json=SPEC)
    key = {"idempotency-key": "load-1"}
    first = await client.post("/api/v1/models/m/replicas", json={}, headers=key)
    again = await client.post("/api/v1/models/m/replicas", json={}, headers=key)
    assert first.json()["replicas"] == again.json()["replicas"]
    assert len(runtime.fleet.replicas) == 1


async def test_every_fault_of_a_spec_is_told_at_once(client: httpx.AsyncClient) -> None:
    refused = await client.put("/api/v1/models/m", json={"comand": ["x"], "vram": "-3GB", "pinned": "maybe"})
    assert refused.status_code == 400
    fields = {fault["field"] for fault in refused.json()["errors"]}
    assert fields == {"comand", "command", "vram", "pinned"}
    both = await client.put("/api/v1/models/m/schedule", json={"replicas": "all", "min_replicas": 2})
    assert (both.status_code, both.json()["field"]) == (400, "replicas")


async def test_unloading_what_does_not_run_says_so(client: httpx.AsyncClient) -> None:
    """X28."""
    assert (await client.delete("/api/v1/replicas/r-none")).status_code == 404
    assert (await client.delete("/api/v1/models/none/replicas")).json()["code"] == "model_unknown"
    await client.put("/api/v1/models/m", json=SPEC)
    assert (await client.delete("/api/v1/models/m/replicas")).json()["code"] == "not_found"
