"""The secrets of an installation of its own: made once, and never brought back after somebody took them away."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.policy.tokens import (
    digest_of,
    registration_token_of,
    revoke_registration_token,
    rotate_token,
    token_of,
)
from modelyard_services.supervisor.bootstrap import Secrets, admit, secrets_of


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with in_memory("up", MemoryLog(), MemoryBus()) as runtime:
        yield runtime


async def start(runtime: Runtime, data_dir: Path) -> Secrets:
    """What a start of `up` does about its secrets."""
    return await admit(runtime, data_dir, secrets_of(data_dir, beyond_loopback=True))


async def test_starting_again_keeps_the_secrets_and_appends_nothing(runtime: Runtime, tmp_path: Path) -> None:
    first = await start(runtime, tmp_path)
    sequence = runtime.fleet.sequence
    assert await start(runtime, tmp_path) == first
    assert runtime.fleet.sequence == sequence
    assert first.token is not None
    assert token_of(runtime.fleet, first.token) is not None


async def test_a_secret_that_was_revoked_never_counts_again(runtime: Runtime, tmp_path: Path) -> None:
    """N4: it was revoked because somebody else has it."""
    before = await start(runtime, tmp_path)
    await runtime.journal.commit(runtime.envelope(), lambda fleet: revoke_registration_token(fleet, name="up"))
    after = await start(runtime, tmp_path)
    assert registration_token_of(runtime.fleet, before.registration_token) is None
    assert registration_token_of(runtime.fleet, after.registration_token) is not None
    assert after.token == before.token


async def test_a_token_that_its_operator_rotated_stays_the_operators(runtime: Runtime, tmp_path: Path) -> None:
    """N4: `up` takes another name; it can't know the operator's secret."""
    before = await start(runtime, tmp_path)
    digest = digest_of("the operator's")
    await runtime.journal.commit(runtime.envelope(), lambda fleet: rotate_token(fleet, name="up", digest=digest))
    after = await start(runtime, tmp_path)
    assert before.token is not None
    assert after.token is not None
    assert token_of(runtime.fleet, before.token) is None
    assert token_of(runtime.fleet, "the operator's") is not None
    own = token_of(runtime.fleet, after.token)
    assert own is not None
    assert (own.name, own.role) == ("up-2", "admin")


async def test_a_start_that_broke_off_before_the_log_took_them_keeps_its_secrets(
    runtime: Runtime, tmp_path: Path
) -> None:
    made = secrets_of(tmp_path, beyond_loopback=True)
    assert (await start(runtime, tmp_path)).token == made.token
