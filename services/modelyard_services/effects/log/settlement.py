"""What a refusal means, judged by what the log holds.

Servers alone and in a cluster answer a repeated append differently, and a leader that was cut off may still answer
reads. So nothing is concluded from a read that shows nothing.
Invariant: a decision is in the log exactly if the next event after any of its guards is its own. It is called lost
only once somebody else's event is seen there, or the server that refused has shown that it can't be there.
"""

from collections.abc import Sequence

from modelyard_services.effects.log.api import Api
from modelyard_services.effects.log.contract import EventIdReused, LogFull, Message, SequenceMoved
from modelyard_services.effects.log.decision import guards
from modelyard_services.effects.log.publisher import Duplicate, Full, Moved


async def settle(
    api: Api, decision: Sequence[Message], refusal: Moved | Duplicate | Full, *, unanswered: bool
) -> tuple[int, ...] | None:
    """The sequences of `decision` if it is in the log; None if that can't be told yet: then send it again.

    Raises:
        SequenceMoved, EventIdReused, LogFull: it isn't in the log, and this is why.
    """
    if (sequences := await _after_its_guards(api, decision, refusal)) is not None:
        return sequences
    match refusal:
        case Moved():
            await _behind_its_guards(api, decision, refusal, unanswered=unanswered)
        case Duplicate():
            return await _where_its_id_is(api, decision, refusal)
        case Full():
            if not unanswered:
                raise LogFull(refusal.text)
    return None


async def _after_its_guards(
    api: Api, decision: Sequence[Message], refusal: Moved | Duplicate | Full
) -> tuple[int, ...] | None:
    for subject, expected in guards(decision).items():
        found = await api.next_on(subject, expected + 1)
        if found is None:
            continue
        place = next(index for index, message in enumerate(decision) if message.subject == subject)
        if found.event_id == decision[place].event_id:
            sequences = await _whole(api, decision, found.sequence - place)
            if sequences is not None:
                return sequences
        raise SequenceMoved(subject, await _newest(api, decision, subject, refusal))
    return None


async def _behind_its_guards(api: Api, decision: Sequence[Message], moved: Moved, *, unanswered: bool) -> None:
    """A guard ahead of its subject, or a subject somebody is writing to right now."""
    if moved.sequence is None:
        if not unanswered:
            raise SequenceMoved(decision[0].subject, None)
        return
    for subject, expected in guards(decision).items():
        if expected > moved.sequence:
            newest = await api.last_on(subject)
            sequence = 0 if newest is None else newest.sequence
            # The sequence the server named has one place: if it is this subject's newest, this guard failed. Then
            # nothing was after it, so the decision, which would be, isn't in the log.
            if sequence == moved.sequence:
                raise SequenceMoved(subject, sequence)


async def _where_its_id_is(api: Api, decision: Sequence[Message], duplicate: Duplicate) -> tuple[int, ...] | None:
    """Its id is in the log, but none of it was seen after its guards: it was decided earlier, on another state."""
    if duplicate.sequence is not None:
        stored = await api.get(duplicate.sequence)
        if stored is None or (stored.event_id, stored.guard) == (decision[0].event_id, decision[0].expected):
            return None
    raise EventIdReused(decision[0].event_id)


async def _whole(api: Api, decision: Sequence[Message], first: int) -> tuple[int, ...] | None:
    """Its sequences from `first` on, if its last event stands where it must."""
    end = first + len(decision) - 1
    stored = await api.get(end)
    if stored is None or (stored.subject, stored.event_id) != (decision[-1].subject, decision[-1].event_id):
        return None
    return tuple(range(first, end + 1))


async def _newest(api: Api, decision: Sequence[Message], subject: str, refusal: Moved | Duplicate | Full) -> int | None:
    if isinstance(refusal, Moved) and len({message.subject for message in decision}) == 1:
        return refusal.sequence
    newest = await api.last_on(subject)
    return None if newest is None else newest.sequence
