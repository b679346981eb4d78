"""Why: causes, decisions and their full accounts, over the API and a real read model (H2, H3)."""

from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest_asyncio

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName
from modelyard_events.node import NodeCordoned, NodeResumed
from modelyard_services.api.app import build_app
from modelyard_services.api.explanations import CAUSES_MAX
from modelyard_services.api.service import Service
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.database import Database
from modelyard_services.effects.journal import Decide
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.policy.access import Access
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import Readings
from tests.support.given import GIB, a_model, an_approved_node, some_spec
from tests.support.postgres import Database as EmptyDatabase
from tests.support.projections import opened, projected, projecting


class Yard:
    """An API over a log in memory and a read model in PostgreSQL."""

    def __init__(self, runtime: Runtime, log: MemoryLog, client: httpx.AsyncClient, database: Database) -> None:
        self.runtime = runtime
        self._log = log
        self._client = client
        self._database = database

    async def did(self, decide: Decide, *, causation: str | None = None) -> int:
        """Commit it; the last sequence."""
        envelope = self.runtime.envelope(causation=causation)
        return (await self.runtime.journal.commit(envelope, decide)).sequence

    async def get(self, path: str, *, status: int = 200, **query: Any) -> Any:
        await projected(self._database, self.runtime.fleet.sequence)
        answer = await self._client.get(f"/api/v1{path}", params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def event_id(self, sequence: int) -> str:
        stored = await self._log.read(sequence)
        assert stored is not None
        return stored.event_id

    async def place(self, model: str, *, again: bool = False) -> int:
        request = Request(
            model=ModelName(model), command=CommandId(f"place-{model}-{again}"), now_ns=self.runtime.clock.now_ns()
        )
        return await self.did(lambda fleet: place(fleet, Readings(), request).events)


@pytest_asyncio.fixture
async def yard(database: EmptyDatabase) -> AsyncIterator[Yard]:
    log = MemoryLog()
    async with (
        in_memory("api", log, MemoryBus()) as runtime,
        opened(database) as read_model,
        projecting(log, read_model),
    ):
        await runtime.wait_ready(timeout_seconds=5)
        app = build_app(Service(runtime, Access(runtime.fleet, True), database=read_model))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(cast(Any, app)), base_url="http://test") as client:
            yield Yard(runtime, log, client, read_model)


def deciding(*events: AnyEvent) -> Decide:
    return lambda _fleet: events


def an_intent(number: int) -> AnyEvent:
    """Another one than that of the number before."""
    return NodeCordoned(node=NodeName("n1")) if number % 2 == 0 else NodeResumed(node=NodeName("n1"))


async def a_yard_with_nodes(yard: Yard) -> None:
    """n1 holds what n2 is too small for."""
    nodes = [*an_approved_node("n1", vram=24 * GIB), *an_approved_node("n2", vram=4 * GIB)]
    await yard.did(deciding(*nodes, *a_model(spec=some_spec(vram=8 * GIB))))


async def test_a_chain_of_causes_is_told_from_its_beginning(yard: Yard) -> None:
    """H3: back to the first one, and forwards to what it led to."""
    await yard.did(deciding(*an_approved_node("n1")))
    sequences = list[int]()
    cause: str | None = None
    for number in range(5):
        sequences.append(await yard.did(deciding(an_intent(number)), causation=cause))
        cause = await yard.event_id(sequences[-1])
    told = await yard.get(f"/events/{sequences[3]}/causes")
    assert told["event"]["sequence"] == sequences[3]
    assert [one["sequence"] for one in told["causes"]] == sequences[:3]
    assert [one["sequence"] for one in told["effects"]] == [sequences[4]]
    assert told["complete"] is True
    first = await yard.get(f"/events/{sequences[0]}/causes")
    assert (first["causes"], first["complete"]) == ([], True)
    assert (await yard.get("/events/first/causes", status=400))["field"] == "sequence"
    missing = await yard.get("/events/999/causes", status=404)
    assert missing["field"] == "sequence"


async def test_a_chain_is_told_up_to_its_limit(yard: Yard) -> None:
    """H3: and says that it began earlier."""
    last = await yard.did(deciding(*an_approved_node("n1")))
    for number in range(CAUSES_MAX + 2):
        cause = await yard.event_id(last)
        last = await yard.did(deciding(an_intent(number)), causation=cause)
    told = await yard.get(f"/events/{last}/causes")
    assert (len(told["causes"]), told["complete"]) == (CAUSES_MAX, False)


async def test_a_decision_gives_its_full_account(yard: Yard) -> None:
    """H2: recomputed at its basis, though the fleet has changed since."""
    await a_yard_with_nodes(yard)
    basis = yard.runtime.fleet.sequence
    await yard.place("m")
    await yard.did(deciding(NodeCordoned(node=NodeName("n1"))))
    (decision,) = (await yard.get("/models/m/why"))["decisions"]
    account = await yard.get(f"/decisions/{decision['id']}/account")
    assert (account["basis"], account["policy"]) == (basis, decision["policy"])
    assert (account["measured"], account["agrees"]) == (True, True)
    chosen, rejected = account["items"]
    assert (chosen["node"], chosen["filter"], chosen["scores"]["vram_free"]) == ("n1", None, 24 * GIB)
    assert (rejected["node"], rejected["filter"], rejected["figure"], rejected["unit"]) == (
        "n2",
        "vram",
        4 * GIB,
        "bytes",
    )
    assert (await yard.get("/decisions/nobody.0/account", status=404))["field"] == "decision"


async def test_why_says_what_was_decided_and_how_each_node_is_judged(yard: Yard) -> None:
    """H2, P5: now, and as it was."""
    await a_yard_with_nodes(yard)
    before = yard.runtime.fleet.sequence
    await yard.place("m")
    now = await yard.get("/models/m/why")
    assert (now["replicas"], [one["kind"] for one in now["decisions"]]) == (1, ["placement"])
    assert {one["node"]: one["filter"] for one in now["nodes"]} == {"n1": "slot", "n2": "vram"}
    assert now["one_more"].startswith("0/2 nodes")
    assert now["unblock"]
    await yard.place("m", again=True)
    later = await yard.get("/models/m/why")
    assert [one["kind"] for one in later["decisions"]] == ["refusal", "placement"], "the newest first"
    then = await yard.get("/models/m/why", at=before)
    assert (then["replicas"], then["decisions"], then["one_more"]) == (0, [], "placed on n1")
    assert {one["node"]: one["filter"] for one in then["nodes"]} == {"n1": None, "n2": "vram"}


async def test_why_of_a_node_is_about_that_node(yard: Yard) -> None:
    """H2: the decisions that placed there, and its own judgement."""
    await a_yard_with_nodes(yard)
    await yard.place("m")
    there, elsewhere = await yard.get("/nodes/n1/why", model="m"), await yard.get("/nodes/n2/why", model="m")
    assert [len(one["decisions"]) for one in (there, elsewhere)] == [1, 0]
    assert [one["node"] for one in elsewhere["nodes"]] == ["n2"]
    assert (await yard.get("/nodes/n9/why", status=404, model="m"))["field"] == "node"
    assert (await yard.get("/nodes/n1/why", status=404, model="x"))["code"] == "model_unknown"
    await yard.get("/nodes/n1/why", status=400)
