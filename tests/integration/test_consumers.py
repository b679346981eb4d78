"""The programs in docs/consumers.md do what it says, on the real server with the real permissions."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from modelyard_events.codec import kind_and_name, tag_of
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import EmbeddedNats, embedded_nats
from modelyard_services.effects.log.endpoint import NatsEndpoint, connect
from modelyard_services.effects.log.jetstream import open_log
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.effects.nats_access.callout import AuthCallout
from modelyard_services.effects.nats_access.keys import Issuer
from modelyard_services.effects.nats_access.readers import keep_copy
from modelyard_services.effects.nats_access.roles import Reader, Role
from modelyard_services.projector.public_stream import PublicStream
from modelyard_services.projector.relay import Relay
from tests.support.projections import Writer

DOCUMENT = Path(__file__).parents[2] / "docs" / "consumers.md"
PROGRAMS = dict(
    re.findall(r"^## With (\S+)\n.*?^```python\n(.*?)^```", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
)
TOKEN = "a-token-of-the-api"  # noqa: S105 - of this test
_EVENT_LINE = re.compile(rb"\d{20} ")
LINES_SECONDS_MAX = 20.0
"""Until a program has started and printed what is there."""


class Installation(msgspec.Struct):
    """A server as `modelyard up` runs it, with a relay at work."""

    server: EmbeddedNats
    writer: Writer
    lines: list[str]
    """What a consumer of all replica events should print, in order."""

    async def append(self, batches: int) -> None:
        for _ in range(batches):
            batch = self.writer.historian.batch()
            await self.writer.append_batch(batch)
            for one in batch:
                tag = tag_of(one.event)
                if kind_and_name(tag)[0] == "replica":
                    self.lines.append(f"{one.sequence:020d} {tag} {getattr(one.event, 'node', None)}")


@pytest_asyncio.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    server = embedded_nats(tmp_path)
    async with ProcessTree(tmp_path / "run") as tree, contextlib.AsyncExitStack() as stack:
        await tree.start(server.child)
        control, callout, copier = [
            await connect(NatsEndpoint(urls=(url,)))
            for url in (server.control_url, server.callout_url, server.copier_url)
        ]
        await declare_streams(control, Layout())
        await AuthCallout(callout, _verify, issuer=Issuer(server.keys.issuer_seed), clock=Clock()).start()
        await keep_copy(copier.jsm(), Layout())
        log = await stack.enter_async_context(open_log(NatsEndpoint(urls=(server.control_url,))))
        relay = asyncio.create_task(Relay(Clock()).run(log, PublicStream(control)))
        yield Installation(server, Writer(log, 5), [])
        relay.cancel()
        await asyncio.wait({relay})
        for client in (control, callout, copier):
            await client.close()


async def _verify(name: str, password: str) -> Role | None:
    return Reader(name) if password == TOKEN else None


class Program:
    """A program of the document, running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def prints(self, lines: list[str]) -> None:
        """Fails unless the next lines it prints are these."""
        assert self._process.stdout is not None
        printed: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINES_SECONDS_MAX):
                while len(printed) < len(lines) and (line := await self._process.stdout.readline()):
                    if _EVENT_LINE.match(line):  # FastStream's own lines come between them
                        printed.append(line.decode().rstrip("\n"))
        assert printed == lines

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()


@contextlib.asynccontextmanager
async def running(library: str, server: EmbeddedNats, directory: Path) -> AsyncIterator[Program]:
    """The document's program for `library`, as a reader would start it."""
    file = directory / "consumer.py"
    file.write_text(PROGRAMS[library])
    environment = {"NATS_URL": server.url, "READER_NAME": "billing", "READER_TOKEN": TOKEN}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(file),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], **environment},
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_the_document_has_a_short_program_for_each_library() -> None:
    assert PROGRAMS.keys() == {"nats-py", "FastStream"}
    for program in PROGRAMS.values():
        compile(program, str(DOCUMENT), "exec")
        code = [line for line in program.splitlines() if line.strip() and "import" not in line]
        assert len(code) <= 16


@pytest.mark.parametrize("library", sorted(PROGRAMS))
async def test_the_documents_program_prints_every_event_once_and_goes_on_after_its_end(
    library: str, installation: Installation, tmp_path: Path
) -> None:
    """It reads what was there before, what comes while it runs, and after a kill only what it hadn't acknowledged."""
    await installation.append(60)
    before = list(installation.lines)
    async with running(library, installation.server, tmp_path) as program:
        await program.prints(before)
        await installation.append(30)
        while_running = installation.lines[len(before) :]
        await program.prints(while_running)
        await asyncio.sleep(0.5)  # the last acknowledgement is on its way
        await program.kill()
    seen = len(installation.lines)
    await installation.append(30)
    async with running(library, installation.server, tmp_path) as program:
        await program.prints(installation.lines[seen:])
