"""Decisions to append, and how to read them back."""

import asyncio
from contextlib import aclosing

from modelyard_services.effects.log.contract import Log, Message, Stored

A = "modelyard.log.node.a"
B = "modelyard.log.node.b"
M = "modelyard.log.model.Qwen/Qwen3-32B:q4"
HARD = "modelyard.log.node.a=20b=2Ec-_@+"

READ_SECONDS_MAX = 20.0
"""More than a follower needs to notice a dead server and go on with the next."""


def event(subject: str, event_id: str, expected: int = 0, body: bytes = b"{}") -> Message:
    return Message(subject=subject, event_id=event_id, body=body, expected=expected)


async def read_until(
    log: Log, last: int, *, after: int = 0, subject: str | None = None, slowly: float = 0
) -> list[list[Stored]]:
    """The chunks a follower gets until `last` has come."""
    chunks: list[list[Stored]] = []
    async with asyncio.timeout(READ_SECONDS_MAX), aclosing(log.follow(after=after, subject=subject)) as following:
        async for chunk in following:
            chunks.append(chunk)
            if chunk[-1].sequence >= last:
                break
            await asyncio.sleep(slowly)
    return chunks


async def read_all(log: Log) -> list[Stored]:
    last = await log.last_sequence()
    return [stored for chunk in await read_until(log, last) for stored in chunk] if last else []
