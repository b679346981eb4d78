"""The relay: every event of the log told on the public stream, once, under its own sequence.

Invariant: there is no checkpoint to lose: the public stream's last sequence says how far it has come, so a relay that
was killed, or was overtaken by a rival, just looks again.
"""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

import structlog

from modelyard_events.codec import UndecodableEventError
from modelyard_projections.cloudevents import CloudEvent, cloud_event
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.feed import recorded
from modelyard_services.effects.log.contract import Log, LogUnavailable, Stored
from modelyard_services.effects.tracing import span
from modelyard_services.projector.errors import ProjectionStoppedError, PublicStreamError
from modelyard_services.projector.joining import slices
from modelyard_services.projector.public_stream import PublicStream

BATCH_EVENTS_MAX: Final = 500
"""Published as one: half of what the server takes in a batch; more is no faster."""

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of data in one batch: well within what the server keeps of unfinished ones."""

RETRY_BASE_SECONDS: Final = 0.05
RETRY_CAP_SECONDS: Final = 5.0

REFUSED_MAX: Final = 100
REFUSED_PAUSE_SECONDS: Final = 0.001
"""Refusals in a row without the stream having moved, a few seconds of them: then it isn't a rival just publishing."""

_log = structlog.get_logger(__name__)


class StreamWentBackError(Exception):
    """The public stream was made anew under our hands: begin again at its beginning."""


class Relay:
    """Relays one log. `problem` says why it can't just now, None when it can."""

    def __init__(self, clock: Clock) -> None:
        self.problem: str | None = None
        self.sequence = 0
        self.target = 0
        self.clock = clock

    @property
    def lag(self) -> int:
        """Sequences between the public stream and the log's end, as they were last seen."""
        return max(0, self.target - self.sequence)

    async def run(self, log: Log, stream: PublicStream) -> None:
        """Relay `log` onto `stream` for ever.

        Raises:
            PublicStreamError: the public stream isn't this log's.
            ProjectionStoppedError: an event can't be read; all before it are published.
            LogFailure: the log can't be followed.
        """
        while True:
            try:
                await _Telling(self, log, stream).run()
            except StreamWentBackError:
                _log.warning("the public stream went back; telling it again", sequence=self.sequence)


class _Telling:
    """One pass of the relay over the log, from where the public stream ends."""

    def __init__(self, relay: Relay, log: Log, stream: PublicStream) -> None:
        self._relay = relay
        self._log = log
        self._stream = stream

    async def run(self) -> None:
        relay = self._relay
        relay.sequence = await self._verified()
        async with aclosing(slices(self._log.follow(after=relay.sequence))) as following:
            async for one in following:
                relay.target = max(relay.target, one[-1].sequence)
                await self._tell(one)

    async def _verified(self) -> int:
        """Where the public stream ends, which is within this log."""
        last = await self._stream.last()
        if last.sequence > self._relay.target:
            self._relay.target = await self._log.last_sequence()
        if last.sequence > self._relay.target:
            raise PublicStreamError(
                f"the public stream ends at {last.sequence}, the log at {self._relay.target}: it isn't of this log, or "
                "the log lost its end; delete the stream EVENTS, and start this process again"
            )
        twin = await self._log.read(last.sequence) if last.event_id is not None else None
        if twin is not None and twin.event_id != last.event_id:
            raise PublicStreamError(
                f"message {last.sequence} of the public stream tells of {last.event_id}, the log holds {twin.event_id} "
                "there: it isn't of this log; delete the stream EVENTS, and start this process again"
            )
        return last.sequence

    async def _tell(self, events: Sequence[Stored]) -> None:
        messages: list[CloudEvent] = []
        unreadable: UndecodableEventError | None = None
        for one in events:
            try:
                event = recorded(one)
            except UndecodableEventError as error:
                unreadable = error
                break
            messages.append(cloud_event(event, log_id=self._log.log_id))
        with span("relay") as work:
            work.note(events=len(messages), first=events[0].sequence)
            work.link(message.headers.get("ce-traceparent") for message in messages)
            await self._publish(messages, first=events[0].sequence)
        if unreadable is not None:
            raise ProjectionStoppedError(unreadable.sequence, str(unreadable)) from unreadable

    async def _publish(self, messages: Sequence[CloudEvent], *, first: int) -> None:
        """Publish `messages`, of which the first belongs at sequence `first`; what a rival published is left out."""
        refused = tries = 0
        relay = self._relay
        while (told := relay.sequence - first + 1) < len(messages):
            if told < 0:
                raise StreamWentBackError
            try:
                moved = await self._publish_some(_batch(messages[told:]))
            except LogUnavailable as away:
                relay.problem = away.detail
                await relay.clock.sleep(backoff_seconds(tries, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
                tries += 1
                continue
            relay.problem, tries = None, 0
            refused = 0 if moved else refused + 1
            if refused > REFUSED_MAX:
                raise PublicStreamError(f"message {relay.sequence + 1} of the public stream is refused time and again")
            if refused:
                await relay.clock.sleep(backoff_seconds(refused, base=REFUSED_PAUSE_SECONDS, cap=RETRY_BASE_SECONDS))

    async def _publish_some(self, part: Sequence[CloudEvent]) -> bool:
        """Publish `part`, or look where the stream stands instead; False when it stands where it did."""
        relay = self._relay
        before = relay.sequence
        if await self._stream.publish(part, after=before):
            relay.sequence = before + len(part)
        else:
            relay.sequence = await self._verified()
        return relay.sequence != before


def _batch(messages: Sequence[CloudEvent]) -> list[CloudEvent]:
    """As many of `messages`, from the first on, as are published as one."""
    part: list[CloudEvent] = []
    size = 0
    for message in messages[:BATCH_EVENTS_MAX]:
        size += len(message.data)
        if part and size > BATCH_BYTES_MAX:
            break
        part.append(message)
    return part
