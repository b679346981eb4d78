"""Tokens over HTTP: listed without their secrets, rotated, paged (rule N4)."""

from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest

from modelyard_services.api.app import build_app
from modelyard_services.api.service import Service
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.policy.access import Access
from modelyard_services.policy.tokens import digest_of

ALICE = {"x-actor": "alice"}


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with in_memory("api", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield runtime


@pytest.fixture
async def client(runtime: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(Service(runtime, Access(runtime.fleet, True, runtime.note_token_use)))
    transport = httpx.ASGITransport(app=cast(Any, app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as client:
        yield client


async def made(client: httpx.AsyncClient, name: str, role: str, **headers: str) -> str:
    answer = await client.post("/tokens", json={"name": name, "role": role}, headers=headers)
    assert answer.status_code == 201, answer.text
    secret: str = answer.json()["token"]
    return secret


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def test_tokens_are_listed_with_who_made_them_and_never_with_their_secret(client: httpx.AsyncClient) -> None:
    root = await made(client, "root", "admin", **ALICE)
    await made(client, "eyes", "viewer", **bearer(root))
    answer = await client.get("/tokens", headers=bearer(root))
    eyes, own = answer.json()["items"]
    assert (eyes["name"], eyes["role"], eyes["created_by"]) == ("eyes", "viewer", {"kind": "operator", "name": "root"})
    assert (own["name"], own["created_by"]["name"], own["id"]) == ("root", "alice", digest_of(root)[:12])
    assert root not in answer.text
    assert digest_of(root) not in answer.text
    assert eyes["last_used"] is None, "nobody used it yet"
    assert own["last_used"] >= own["since"]
    assert (own["revoked"], own["revoked_by"]) == (None, None)


async def test_a_viewer_can_not_list_tokens(client: httpx.AsyncClient) -> None:
    root = await made(client, "root", "admin")
    eyes = await made(client, "eyes", "viewer", **bearer(root))
    for path in ("/tokens", "/registration-tokens"):
        assert (await client.get(path, headers=bearer(eyes))).json()["code"] == "forbidden"


async def test_a_rotated_token_keeps_name_and_role_and_loses_its_secret(client: httpx.AsyncClient) -> None:
    """N4."""
    root = await made(client, "root", "admin")
    before = await made(client, "ci", "operator", **bearer(root))
    answer = await client.post("/tokens/ci/rotate", headers=bearer(root))
    assert answer.status_code == 200, answer.text
    after = answer.json()["token"]
    assert after != before
    assert (await client.get("/nodes", headers=bearer(before))).status_code == 401
    assert (await client.get("/nodes", headers=bearer(after))).status_code == 200
    listed = (await client.get("/tokens?revoked=true", headers=bearer(root))).json()["items"]
    old, new = sorted((item for item in listed if item["name"] == "ci"), key=lambda item: item["revoked"] is None)
    assert (old["id"], old["role"], old["revoked_by"]["name"]) == (digest_of(before)[:12], "operator", "root")
    assert (new["id"], new["role"], new["revoked"]) == (digest_of(after)[:12], "operator", None)


async def test_rotating_again_under_one_key_tells_no_secret_that_does_not_count(client: httpx.AsyncClient) -> None:
    """I11: the first answer's secret is the one in force; the second request must not hand out another."""
    root = await made(client, "root", "admin")
    key = bearer(root) | {"idempotency-key": "k"}
    await made(client, "ci", "viewer", **bearer(root))
    first = await client.post("/tokens/ci/rotate", headers=key)
    again = await client.post("/tokens/ci/rotate", headers=key)
    assert (first.status_code, again.json()["code"]) == (200, "conflict")
    assert (await client.get("/nodes", headers=bearer(first.json()["token"]))).status_code == 200


async def test_registration_tokens_are_listed_rotated_and_revoked_apart_from_clients(
    client: httpx.AsyncClient,
) -> None:
    """N4."""
    first = (await client.post("/registration-tokens", json={"name": "rack/1"}, headers=ALICE)).json()["token"]
    second = (await client.post("/registration-tokens/rack%2F1/rotate")).json()["token"]
    assert first != second
    (item,) = (await client.get("/registration-tokens")).json()["items"]
    assert (item["name"], item["role"], item["id"]) == ("rack/1", None, digest_of(second)[:12])
    assert (await client.get("/tokens?revoked=true")).json()["items"] == []
    await client.delete("/registration-tokens/rack%2F1")
    assert (await client.get("/registration-tokens")).json()["items"] == []
    gone = (await client.get("/registration-tokens?revoked=true")).json()["items"]
    assert {item["id"] for item in gone} == {digest_of(first)[:12], digest_of(second)[:12]}


@pytest.mark.parametrize("path", ["/tokens/nobody", "/registration-tokens/nobody"])
async def test_rotating_what_is_not_there_says_so(client: httpx.AsyncClient, path: str) -> None:
    """X28."""
    answer = await client.post(f"{path}/rotate")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_use_that_another_process_told_of_is_shown_but_not_that_of_an_older_token_of_the_name(
    client: httpx.AsyncClient, runtime: Runtime
) -> None:
    root = await made(client, "root", "admin")
    await made(client, "ci", "viewer", **bearer(root))
    runtime.demand.use_token("ci", runtime.clock.now_ns())
    used = (await client.get("/tokens", headers=bearer(root))).json()["items"][0]
    assert used["last_used"] is not None
    await client.post("/tokens/ci/rotate", headers=bearer(root))
    assert (await client.get("/tokens", headers=bearer(root))).json()["items"][0]["last_used"] is None
