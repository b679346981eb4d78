"""What operators ask of the reconciler over HTTP (rules C4, C5, C8)."""

import httpx

from modelyard_events.decision import Decision
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelDeclaredUnsatisfiable
from modelyard_services.effects.runtime import Runtime
from tests.support.given import a_model

M = ModelName("m")


async def _holds(runtime: Runtime, *events: object) -> None:
    await runtime.journal.commit(runtime.envelope(), lambda _fleet: events)  # type: ignore[arg-type, return-value]


async def test_an_open_breaker_shows_reason_until_and_failed_passes_and_a_command_clears_it(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """C5."""
    await _holds(runtime, *a_model())
    await client.put("/api/v1/models/m/schedule", json={"min_replicas": 1})
    decision = Decision(kind="breaker", outcome="no", policy="test", basis=0)
    opened = ModelDeclaredUnsatisfiable(
        model=M, reason="0/0 nodes", failed_passes=3, cool_down_seconds=300, decision=decision
    )
    await _holds(runtime, opened)
    shown = (await client.get("/api/v1/models/m")).json()["schedule"]["unsatisfiable"]
    assert (shown["reason"], shown["failed_passes"]) == ("0/0 nodes", 3)
    assert shown["until"].endswith("Z")
    cleared = await client.post("/api/v1/models/m/clear-breaker")
    assert (cleared.status_code, cleared.json()["changed"]) == (200, True)
    assert (await client.get("/api/v1/models/m/schedule")).json()["unsatisfiable"] is None
    assert (await client.post("/api/v1/models/m/clear-breaker")).json()["changed"] is False
    unknown = await client.post("/api/v1/models/nobody/clear-breaker")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_unknown")
