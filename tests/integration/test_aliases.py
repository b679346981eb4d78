"""Definitions that race for one name, each decided by a process that hasn't seen the other's: X21's way, for names."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.spec import ModelSpec
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.journal import Committed
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import ConflictError
from modelyard_services.policy.models import define, remove
from modelyard_services.settings import NatsSettings, ProcessSettings
from tests.support.nats_servers import Servers

ROUNDS = 25
"""Of two that begin at once one is mostly ahead by more than the other's look; in most of so many rounds it isn't."""


@pytest.fixture(params=["nats_r1", "nats_r3"])
def servers(request: pytest.FixtureRequest) -> Servers:
    found: Servers = request.getfixturevalue(request.param)
    return found


@pytest_asyncio.fixture
async def rivals(servers: Servers) -> AsyncIterator[tuple[Runtime, Runtime]]:
    """Two processes, each with its own fold of one empty log."""
    await servers.forget()
    nats = NatsSettings(servers.url, replicas=servers.replicas)
    async with contextlib.AsyncExitStack() as stack:
        found = [await stack.enter_async_context(open_runtime(ProcessSettings(name, nats))) for name in ("a", "b")]
        for runtime in found:
            await runtime.wait_ready(timeout_seconds=30)
        yield found[0], found[1]


class Rival:
    """One definition on its way, and on how many states of the fleet it was decided."""

    def __init__(self, runtime: Runtime, model: str, *aliases: str) -> None:
        self.runtime, self.model = runtime, ModelName(model)
        self.spec = ModelSpec(command=("serve",), vram=1, aliases=aliases)
        self.decided = 0

    async def defined(self) -> Committed:
        def decide(fleet: Fleet) -> list[AnyEvent]:
            self.decided += 1
            return define(fleet, model=self.model, spec=self.spec)

        return await self.runtime.journal.commit(self.runtime.envelope(), decide)


async def race(first: Rival, second: Rival) -> None:
    """One is in the log, the other was refused by name, and both processes agree on whose it is."""
    results = await asyncio.gather(first.defined(), second.defined(), return_exceptions=True)
    done = [result for result in results if isinstance(result, Committed)]
    refused = [result for result in results if isinstance(result, ConflictError)]
    assert (len(done), len(refused)) == (1, 1), results
    assert refused[0].code == "conflict"
    for rival in (first, second):
        await rival.runtime.journal.passed(done[0].sequence, timeout_seconds=10)
        assert all(len(holders) == 1 for holders in rival.runtime.fleet.aliases.values())


async def test_of_two_models_that_claim_one_alias_at_once_one_is_refused(rivals: tuple[Runtime, Runtime]) -> None:
    decided = 0
    for number in range(ROUNDS):
        also = f"own{number}"
        pair = Rival(rivals[0], f"a{number}", f"x{number}"), Rival(rivals[1], f"b{number}", also, f"x{number}")
        await race(*pair)
        decided += sum(rival.decided for rival in pair)
        assert rivals[0].fleet.model_named(f"x{number}") == rivals[1].fleet.model_named(f"x{number}")
    assert decided > 2 * ROUNDS, "no two were ever decided without knowing of each other"


async def test_of_a_model_and_an_alias_of_one_name_at_once_one_is_refused(rivals: tuple[Runtime, Runtime]) -> None:
    decided = 0
    for number in range(ROUNDS):
        pair = Rival(rivals[0], f"a{number}", f"x{number}"), Rival(rivals[1], f"x{number}")
        await race(*pair)
        decided += sum(rival.decided for rival in pair)
    assert decided > 2 * ROUNDS, "no two were ever decided without knowing of each other"


async def test_a_name_that_was_given_up_is_anybodys(rivals: tuple[Runtime, Runtime]) -> None:
    """Nothing is told where it was claimed; the guard there only grows."""
    first, second = Rival(rivals[0], "a", "x"), Rival(rivals[1], "b", "x")
    done = await first.defined()
    await second.runtime.journal.passed(done.sequence, timeout_seconds=10)
    with pytest.raises(ConflictError, match="'x' is an alias of model 'a' already"):
        await second.defined()
    runtime = first.runtime
    gone = await runtime.journal.commit(runtime.envelope(), lambda fleet: remove(fleet, model=ModelName("a")))
    await second.runtime.journal.passed(gone.sequence, timeout_seconds=10)
    await second.defined()
    assert rivals[1].fleet.model_named("x") == "b"
