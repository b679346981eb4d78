"""Query parameters that a route doesn't know, and values that can't exist: refused by name, never an empty list."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from modelyard_events.codec import TAGS
from modelyard_services.api.parameters import EVENT_TYPES, known_type
from modelyard_services.errors import InvalidQueryError


@pytest.mark.parametrize(
    ("query", "field", "value", "told"),
    [
        ("/nodes?lable=tier", "lable", "tier", "known are admission, liveness, intent, node_type, selector"),
        ("/nodes?selecter=tier", "selecter", "tier", "did you mean 'selector'?"),
        ("/nodes?admission=aproved", "admission", "aproved", "did you mean 'approved'?"),
        ("/nodes?liveness=7", "liveness", "7", "known are "),
        ("/nodes?selector=a%20in%20(", "selector", "a in (", "selector"),
        ("/nodes?limit=0", "limit", "0", "limit"),
        ("/nodes?limit=1&limit=2", "limit", "2", "twice"),
        ("/nodes?min_seq=soon", "min_seq", "soon", "whole number"),
        ("/models?node=n", "node", "n", "known are at, limit, after, min_seq"),
        ("/replicas?state=redy", "state", "redy", "did you mean 'ready'?"),
        ("/replicas?replica_state=ready", "replica_state", "ready", "known are model, node, state"),
        ("/replicas?=x", "", "x", "there is no query parameter ''"),
        ("/reservations?nod=n", "nod", "n", "did you mean 'node'?"),
        ("/schedules?limits", "limits", "", "did you mean 'limit'?"),
        ("/events?type=replica.plced", "type", "replica.plced", "did you mean 'replica.placed'?"),
        ("/events?type=replica.pla", "type", "replica.pla", "did you mean 'replica.placed'?"),
        ("/events?type=node.departed.v0", "type", "node.departed.v0", "did you mean 'node.departed.v1'?"),
        ("/events?type=", "type", "", "known are fleet"),
        ("/events?after=-1", "after", "-1", ">= 0"),
        ("/events?from=yesterday", "from", "yesterday", "from"),
        ("/events?from=2026-01-31T12:00:00", "from", None, "needs its zone"),
        ("/events?from=2026-01-31T12:00:00Z&to=2026-01-31T11:00:00Z", "to", None, "to: nothing is from"),
        ("/events/stream?type=replicas", "type", "replicas", "did you mean 'replica'?"),
        ("/events/stream?limit=3", "limit", "3", "known are after, node, model, type, actor, correlation, min_seq"),
        ("/tokens?revokd=true", "revokd", "true", "there is no query parameter 'revokd' here"),
        ("/state/hash?then=5", "then", "5", "min_seq"),
        ("/openapi.json?pretty", "pretty", "", "min_seq"),
    ],
)
async def test_a_query_that_cannot_be_meant_is_refused_by_name(
    client: httpx.AsyncClient, query: str, field: str, value: str | None, told: str
) -> None:
    """T8: nothing is silently empty, or silently everything."""
    refused = await client.get("/api/v1" + query)
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["field"]) == (400, "invalid_query", field), problem
    assert value is None or problem["value"] == value
    assert told in problem["detail"], problem["detail"]


async def test_a_command_with_an_unknown_parameter_does_nothing(client: httpx.AsyncClient) -> None:
    refused = await client.put("/api/v1/nodes/n/max-replicas-per-model?enforced=true", json={"value": 1})
    assert (refused.json()["code"], refused.json()["field"]) == ("invalid_query", "enforced")
    assert "did you mean 'enforce'?" in refused.json()["detail"]


async def test_a_thousand_parameters_are_refused_unread(client: httpx.AsyncClient) -> None:
    refused = await client.get("/api/v1/nodes?" + "&".join(f"a{index}=1" for index in range(1000)))
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_query")


async def test_every_route_refuses_what_the_document_does_not_name(client: httpx.AsyncClient) -> None:
    """T8: the OpenAPI document and the routes know the same parameters."""
    document = (await client.get("/api/v1/openapi.json")).json()
    routes = [path for path, methods in document["paths"].items() if path.startswith("/api/v1/") and "get" in methods]
    assert len(routes) > 20
    for path in routes:
        refused = await client.get(path.replace("{", "").replace("}", "") + "?zzz=1")
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_query"), path
        detail = refused.json()["detail"]
        assert all(name in detail for name in _named(document, path)), (path, detail)


async def test_what_is_known_is_answered(client: httpx.AsyncClient) -> None:
    for query in ("/nodes?admission=approved&limit=5&min_seq=0", "/replicas?state=unreachable&node=nobody"):
        answer = await client.get("/api/v1" + query)
        assert (answer.status_code, answer.json()["items"]) == (200, [])


@pytest.mark.parametrize("known", [*TAGS, "replica.placed", "model", None])
def test_a_type_is_a_tag_or_the_front_of_one(known: str | None) -> None:
    assert known_type(known) == known


def test_the_fronts_of_tags_are_their_names_and_kinds() -> None:
    assert {"node", "node.registered", "node.registered.v1", "replica", "fleet"} <= set(EVENT_TYPES)
    with pytest.raises(InvalidQueryError, match="did you mean 'node"):
        known_type("node.remove")


def _named(document: dict[str, Any], path: str) -> Iterator[str]:
    for parameter in document["paths"][path]["get"]["parameters"]:
        if parameter["in"] == "query":
            yield parameter["name"]
