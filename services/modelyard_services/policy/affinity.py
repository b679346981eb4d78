"""Requests that belong together go to one replica, while that costs nobody a wait (rule T3).

```
session ─▶ ring of replicas ─▶ the first in the session's own order that isn't too busy
prompt  ─▶ chained blocks   ─▶ the replica that saw most of its beginning and isn't too busy
                                └ none ─▶ the least busy, as without affinity (T1)
```

Invariant: a replica is preferred only while it is within reach of the least busy one, so affinity never builds a queue
where there is room; each replica is a point of its own, so all replicas of a node take their part (X13).
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import Final, Literal

import msgspec

from modelyard_events.fleet import Settings
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.routing import LEAST_BUSY, Candidate, Choice, Ranking, rank

PROMPT_BYTES_MAX: Final = 16 * 1024
"""Of a prompt's beginning: some four thousand tokens, beyond which prompts that began alike stay alike."""

RING_POINTS: Final = 64
"""Points of each replica on the ring: shares of sessions then differ by an eighth or so."""

RING_TRIES_MAX: Final = 8
"""Replicas that a session goes on to: if so many are too busy, the least busy one is as good as any."""

BLOCKS_KEPT_MAX: Final = 65_536
"""Blocks remembered by one router: a thousand long conversations, some 30 MB."""

HOLDERS_MAX: Final = 16
"""Replicas remembered per block: a system prompt that everyone sends would name all replicas on each request."""

_POINT_BYTES: Final = 8

Affinity = Literal["none", "session", "prefix"]
"""What a model's schedule may ask for."""


class Hint(msgspec.Struct, frozen=True):
    """What a request says of itself: the session it belongs to, and its prompt's beginning."""

    session: bytes | None = None
    prompt: bytes | None = None


def hint_for(session: str | None, prompt: str | None) -> Hint | None:
    """The hint in these texts, None when they are empty."""
    if not session and not prompt:
        return None
    return Hint(
        session.encode() if session else None,
        prompt[:PROMPT_BYTES_MAX].encode()[:PROMPT_BYTES_MAX] if prompt else None,
    )


class Pick(msgspec.Struct, frozen=True):
    """The replica for a request, and why it is this one; `blocks` are what it learns of the prompt."""

    candidate: Candidate
    choice: Choice = LEAST_BUSY
    blocks: tuple[bytes, ...] = ()


def tolerable(candidate: Candidate, least: Candidate, settings: Settings) -> bool:
    """Whether `candidate` isn't too much busier than the least busy one."""
    by_factor = settings.affinity_slack_factor * least.in_flight + settings.affinity_slack_base
    bound = min(least.in_flight + settings.affinity_slack, by_factor)
    return candidate.open and candidate.in_flight <= bound


def blocks_of(model: ModelName, prompt: bytes, settings: Settings) -> tuple[bytes, ...]:
    """A name for each beginning of `prompt`, block by block; what doesn't fill a block doesn't count."""
    name, names, size = model.encode(), [], settings.affinity_block_bytes
    count = min(len(prompt) // size, settings.affinity_blocks_max)
    for index in range(count):
        block = prompt[index * size : (index + 1) * size]
        name = blake2b(block, key=name[:64], digest_size=_POINT_BYTES).digest()
        names.append(name)
    return tuple(names)


class Ring:
    """Replicas on a circle: each key has its own order of them, and one that comes or goes changes few orders."""

    def __init__(self, replicas: Iterable[ReplicaId] = ()) -> None:
        self._points: list[tuple[int, ReplicaId]] = sorted(
            point for replica in replicas for point in points_of(replica)
        )

    def put(self, replica: ReplicaId) -> None:
        """Add `replica`, which isn't there."""
        for point in points_of(replica):
            insort(self._points, point)

    def drop(self, replica: ReplicaId) -> None:
        """Remove `replica`, which is there."""
        for point in points_of(replica):
            del self._points[bisect_left(self._points, point)]

    def walk(self, key: bytes) -> Iterator[ReplicaId]:
        """The replicas in the order of `key`."""
        seen: set[ReplicaId] = set()
        start = bisect_left(self._points, (_number(blake2b(key, digest_size=_POINT_BYTES).digest()), ""))
        for index in range(start, start + len(self._points)):
            replica = self._points[index % len(self._points)][1]
            if replica not in seen:
                seen.add(replica)
                yield replica


def points_of(replica: ReplicaId) -> list[tuple[int, ReplicaId]]:
    """Where `replica` stands on the ring."""
    digest = b"".join(blake2b(b"%d %s" % (index, replica.encode())).digest() for index in range(RING_POINTS // 8))
    return [
        (_number(digest[at : at + _POINT_BYTES]), replica) for at in range(0, RING_POINTS * _POINT_BYTES, _POINT_BYTES)
    ]


class Prefixes:
    """Which replicas were sent prompts that begin alike, for as long as there is space to remember."""

    def __init__(self, *, blocks_max: int = BLOCKS_KEPT_MAX) -> None:
        self._blocks_max = blocks_max
        self._holders: OrderedDict[bytes, dict[ReplicaId, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def learn(self, blocks: Iterable[bytes], replica: ReplicaId) -> None:
        """`replica` is sent a prompt that begins with `blocks`."""
        for block in blocks:
            holders = self._holders.setdefault(block, {})
            self._holders.move_to_end(block)
            holders.pop(replica, None)
            holders[replica] = None
            if len(holders) > HOLDERS_MAX:
                del holders[next(iter(holders))]
        while len(self._holders) > self._blocks_max:
            self._holders.popitem(last=False)

    def holders(self, block: bytes) -> Iterable[ReplicaId]:
        return self._holders.get(block, ())


def by_session(
    ranking: Ranking, ring: Ring, session: bytes, *, settings: Settings, avoid: Container[ReplicaId] = ()
) -> Pick | None:
    """The replica for a request of `session`, None when none is open."""
    least = ranking.best(avoid)
    if least is None:
        return None
    own: ReplicaId | None = None
    for replica in islice(ring.walk(session), RING_TRIES_MAX):
        candidate = ranking.get(replica)
        if candidate is not None and replica not in avoid and tolerable(candidate, least, settings):
            why = "the session's own replica" if own is None else f"next for the session, {own} can't take it now"
            return Pick(candidate, Choice("session", f"{why}; {_load(candidate, least)}"))
        own = own or replica
    why = f"the session's own replica {own} can't take it now, nor can those after it"
    return Pick(least, Choice("least_busy", why))


def by_prefix(
    ranking: Ranking,
    prefixes: Prefixes,
    blocks: tuple[bytes, ...],
    *,
    settings: Settings,
    avoid: Container[ReplicaId] = (),
) -> Pick | None:
    """The replica for a prompt that begins with `blocks`, None when none is open.

    One that saw too small a share of them would save less work than an even load does.
    """
    least = ranking.best(avoid)
    if least is None:
        return None
    for count in range(len(blocks), 0, -1):
        if count < settings.affinity_match_share * len(blocks):
            break
        found = [ranking.get(replica) for replica in prefixes.holders(blocks[count - 1]) if replica not in avoid]
        fit = [candidate for candidate in found if candidate is not None and tolerable(candidate, least, settings)]
        if fit:
            candidate = min(fit, key=rank)
            matched = f"saw {count} of the prompt's {len(blocks)} blocks before"
            return Pick(candidate, Choice("prefix", f"{matched}; {_load(candidate, least)}"), blocks)
    why = "no replica that saw the prompt's beginning can take it now" if blocks else "the prompt is too short"
    return Pick(least, Choice("least_busy", why), blocks)


class Affinities:
    """The rings and prompts of one router, kept in step with its rankings; `fleet` says how far affinity goes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rings: dict[ModelName, Ring] = {}
        self._prefixes = Prefixes()

    def pick(
        self, model: ModelName, affinity: Affinity, ranking: Ranking, *, hint: Hint, avoid: Container[ReplicaId] = ()
    ) -> Pick | None:
        """The replica for a request that says `hint` of itself, None when none is open."""
        settings = self._fleet.settings
        if affinity == "session" and hint.session is not None:
            ring = self._rings.get(model)
            if ring is None:
                ring = self._rings[model] = Ring(candidate.replica for candidate in ranking)
            return by_session(ranking, ring, hint.session, settings=settings, avoid=avoid)
        if affinity == "prefix" and hint.prompt is not None:
            blocks = blocks_of(model, hint.prompt, settings)
            return by_prefix(ranking, self._prefixes, blocks, settings=settings, avoid=avoid)
        least = ranking.best(avoid)
        return None if least is None else Pick(least)

    def learn(self, pick: Pick) -> None:
        """The picked replica gets the request."""
        if pick.blocks:
            self._prefixes.learn(pick.blocks, pick.candidate.replica)

    def came(self, model: ModelName, replica: ReplicaId) -> None:
        """`replica` became routable."""
        if model in self._rings:
            self._rings[model].put(replica)

    def went(self, model: ModelName, replica: ReplicaId) -> None:
        """`replica` is routable no more."""
        if model in self._rings:
            self._rings[model].drop(replica)


def _load(candidate: Candidate, least: Candidate) -> str:
    return f"{candidate.in_flight} in flight, the least busy has {least.in_flight}"


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big")
