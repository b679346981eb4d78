"""What can be seen over the network: the log, the read model, the API, and each process of an `up`.

Invariant: asks, and changes nothing; streams that aren't there are not made.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
from nats.aio.client import Client

from modelyard_events.subjects import LEASES_STREAM, LOG_STREAM, RECONCILER_LEASE
from modelyard_projections.queries import projection
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.connect import endpoint_of
from modelyard_services.effects.database import Database
from modelyard_services.effects.lease.claim import read_claim
from modelyard_services.effects.log.api import STREAM_NOT_FOUND, Api, StreamInfo
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.streams import verify_log
from modelyard_services.effects.status import STATUS_HOST
from modelyard_services.errors import UnauthorizedError, UnavailableError
from modelyard_services.settings import NatsSettings
from modelyard_services.supervisor.doctor import findings
from modelyard_services.supervisor.doctor.findings import Finding, Log, Projected

ANSWER_SECONDS_MAX: Final = 5.0
"""A process that takes longer over its own health is in no state to serve."""

NAME: Final = "doctor"


async def log(url: str) -> tuple[list[Finding], Log]:
    """The NATS server that answers at `url`, and the log on it.

    Raises:
        LogUnavailable: no server lets us in, or JetStream or the log isn't there.
        LogMisconfigured: the stream isn't an append-only history.
    """
    async with _client(url) as client:
        version = client.connected_server_version
        clock, before = Clock(), Clock().now()
        info = await Api(client, LOG_STREAM).info()
        asked_ns = round((before.timestamp() + clock.now().timestamp()) / 2 * 1e9)
        lease = await _lease(client)
    seen = [findings.nats_version((version.major, version.minor, version.patch))]
    found = Log(verify_log(info), info.state.last_seq)
    seen += [findings.log_fill(info.state.bytes, info.ceiling), _peers(info), lease]
    if info.told_ns is not None:
        seen.append(findings.clock((asked_ns - info.told_ns) / 1e9))
    return seen, found


async def read_model(url: str) -> tuple[list[Finding], Projected | None]:
    """What PostgreSQL at `url` says of the read model.

    Raises:
        UnavailableError: it doesn't answer, or isn't a database of ours.
    """
    database = Database(url, process=NAME)
    try:
        record = await database.ask(projection)
    finally:
        await database.close()
    seen = [Finding("postgresql", "ok", "answers")]
    if record is None:
        return seen, None
    problem = None if record.status == "running" else str((record.error or {}).get("problem", record.status))
    return seen, Projected(record.log_id, record.sequence, problem)


async def api(url: str, token: str | None) -> list[Finding]:
    """Whether the API at `url` is ready, and which nodes wait for somebody.

    Raises:
        UnavailableError: it doesn't answer.
        UnauthorizedError: it wants another token.
    """
    ready = findings.readiness("api", await _problems(f"{url}/readyz", token))
    answer = await _get(f"{url}/api/v1/nodes", token)
    _refused(answer, url)
    nodes = answer.json()["items"]
    return [
        ready,
        findings.fleet(
            {node["name"]: node["admission"] for node in nodes}, {node["name"]: node["liveness"] for node in nodes}
        ),
    ]


async def process(name: str, port: int) -> list[Finding]:
    """Whether the process that answers for its health on `port` is ready.

    Raises:
        UnavailableError: nothing answers there.
    """
    return [findings.readiness(name, await _problems(f"http://{STATUS_HOST}:{port}/readyz", None))]


async def _problems(url: str, token: str | None) -> list[str]:
    answer = await _get(url, token)
    _refused(answer, url)
    body: dict[str, Any] = answer.json()
    return list(body["problems"])


async def _get(url: str, token: str | None) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS_MAX, trust_env=False, headers=headers) as client:
            return await client.get(url)
    except httpx.TransportError as error:
        raise UnavailableError(f"{url} does not answer: {error or type(error).__name__}") from error


def _refused(answer: httpx.Response, url: str) -> None:
    if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise UnauthorizedError(f"{url} wants a viewer's token or better: give --token or MODELYARD_TOKEN")


async def _lease(client: Client) -> Finding:
    """Who reconciles. Both times are the server's, so no clock of ours takes part."""
    api = Api(client, LEASES_STREAM)
    info = await api.info()
    if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
        return findings.lease(None, seconds=0, age_seconds=None)
    last = await api.last_on(RECONCILER_LEASE)
    if last is None:
        return findings.lease(None, seconds=0, age_seconds=None)
    claim, told_ns = read_claim(last.body), info.told_ns
    age = None if told_ns is None else max(0.0, (told_ns - last.time_ns) / 1e9)
    return findings.lease(claim.holder, seconds=claim.seconds, age_seconds=age)


def _peers(info: StreamInfo) -> Finding:
    away = [peer.name for peer in info.cluster.replicas if peer.away]
    behind = [peer.name for peer in info.cluster.replicas if not peer.current and not peer.away]
    return findings.peers(info.replicas, away=away, behind=behind)


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Client]:
    client = await connect(endpoint_of(NatsSettings(url), name=NAME))
    try:
        yield client
    finally:
        await client.close()
