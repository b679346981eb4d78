"""One state everywhere, shown: the fold in memory, the log replayed, and the rows in PostgreSQL (I9)."""

import msgspec

from modelyard_projections import queries
from modelyard_projections.hashing import StateHash
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.database import Database
from modelyard_services.settings import NatsSettings, ProcessSettings
from modelyard_services.supervisor.up import Running

REPLAY_SECONDS = 60.0


class Hashes(msgspec.Struct, frozen=True):
    """Three hashes, and the sequence each stands for."""

    sequence: int
    memory: str
    replay_sequence: int
    replay: str
    rows_sequence: int
    rows: str

    @property
    def sequences_agree(self) -> bool:
        return self.sequence == self.replay_sequence == self.rows_sequence

    @property
    def agree(self) -> bool:
        """Whether all three are one."""
        return self.sequences_agree and self.memory == self.replay == self.rows


async def hashes_of(running: Running, *, memory_sequence: int, memory: str) -> Hashes:
    """Replay the log and read the rows, to hold `memory` against."""
    async with open_runtime(ProcessSettings("proof", NatsSettings(running.control_url))) as runtime:
        await runtime.wait_ready(timeout_seconds=REPLAY_SECONDS)
        await runtime.journal.passed(memory_sequence, timeout_seconds=REPLAY_SECONDS)
        replay_sequence, replay = runtime.fleet.sequence, StateHash.of(runtime.fleet).text
    database = Database(running.endpoints.database_url, process="proof")
    try:
        async with database.reading() as connection:
            stands = await queries.projection(connection)
            rows = await queries.rows_hash(connection)
    finally:
        await database.close()
    return Hashes(memory_sequence, memory, replay_sequence, replay, stands.sequence if stands else 0, rows)
