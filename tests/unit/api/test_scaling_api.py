"""What operators ask of the reconciler over HTTP (rules C4, C5, C8)."""

import httpx

from modelyard_events.decision import Decision
from modelyard_events.fleet import FleetMassLossDeclared
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


async def test_settings_are_set_and_reset_one_by_one_or_all_and_say_what_they_refuse(
    runtime: Runtime, client: httpx.AsyncClient
) -> None:
    """P3, N9: numbers, switches and words, in force at once."""
    given = {"idle_scale_down_seconds": 60, "evictions_frozen": True, "eviction_order": "size"}
    assert (await client.patch("/api/v1/settings", json=given)).json()["changed"] is True
    shown = (await client.get("/api/v1/settings")).json()["settings"]
    assert {name: shown[name] for name in given} == given
    assert (await client.patch("/api/v1/settings", json=given)).json()["changed"] is False
    await client.patch("/api/v1/settings", json={"eviction_order": None})
    assert runtime.fleet.settings.eviction_order == "lru"
    assert runtime.fleet.settings.evictions_frozen is True
    await client.put("/api/v1/settings", json={})
    assert runtime.fleet.settings == runtime.fleet.settings.__class__()
    for name, value in (("eviction_order", "newest"), ("breaker_failed_passes", 0), ("reconciler_frozen", "yes")):
        refused = await client.patch("/api/v1/settings", json={name: value})
        assert (refused.status_code, refused.json()["field"]) == (400, name)


async def test_an_operator_says_that_a_mass_loss_is_real(runtime: Runtime, client: httpx.AsyncClient) -> None:
    """N9."""
    await _holds(runtime, FleetMassLossDeclared(nodes=("n1", "n2"), fleet_size=3))
    assert (await client.get("/api/v1/settings")).json()["mass_loss"] == ["n1", "n2"]
    cleared = await client.post("/api/v1/settings/clear-mass-loss")
    assert (cleared.status_code, cleared.json()["changed"]) == (200, True)
    assert runtime.fleet.mass_loss == ()
    assert (await client.post("/api/v1/settings/clear-mass-loss")).json()["changed"] is False
