"""The four streams of modelyard, declared: the log, its public lifecycle stream, telemetry, and leases.

Invariant: a stream that exists is never changed. If it isn't what we need, we refuse to work on it and say which
setting differs: silently repairing the configuration of somebody's truth is how histories get lost.
"""

from secrets import token_hex
from typing import Final

from msgspec import Struct
from nats.aio.client import Client

from modelyard_events.subjects import (
    EVENTS_STREAM,
    EVENTS_SUBJECTS,
    LEASES_STREAM,
    LEASES_SUBJECTS,
    LOG_STREAM,
    LOG_SUBJECTS,
    TELEMETRY_STREAM,
    TELEMETRY_SUBJECTS,
)
from modelyard_services.effects.log.api import LOG_ID_KEY, STREAM_NOT_FOUND, Api, StreamInfo
from modelyard_services.effects.log.contract import LogMisconfigured, LogUnavailable
from modelyard_services.settings import TELEMETRY_SECONDS

LOG_BYTES_MAX: Final = 16 * 1024**3
"""About forty million events. A ceiling, because `discard new` then refuses writes instead of losing history."""

EVENTS_BYTES_MAX: Final = 4 * 1024**3
"""A week of a busy fleet; older CloudEvents go first, the log has them all."""

TELEMETRY_BYTES_MAX: Final = 64 * 1024**2
"""In memory: the newest reading of ten thousand nodes is a quarter of this."""

LEASES_BYTES_MAX: Final = 1024**2
"""One small message per lease."""

_SECOND: Final = 1_000_000_000
EVENTS_AGE_NS: Final = 7 * 24 * 3600 * _SECOND
TELEMETRY_AGE_NS: Final = round(TELEMETRY_SECONDS * _SECOND)
"""A reading older than this says less than none."""

DUPLICATE_WINDOW_NS: Final = 600 * _SECOND
"""Far longer than any append is repeated; guards alone would do, this spares R3 the conflict."""

_LOG_ID_BYTES: Final = 16
_NAME_IN_USE: Final = 10058

_FORBIDDEN: Final = (
    "allow_rollup_hdrs",
    "allow_msg_ttl",
    "allow_msg_schedules",
    "allow_msg_counter",
    "allow_batched",
    "mirror",
    "sources",
    "subject_transform",
    "sealed",
)
"""Each of these lets something else than a guarded append change the log, or stops appends."""


class Layout(Struct, frozen=True, kw_only=True):
    """How big and how safe. `replicas`: 1 embedded, 3 over three failure domains in production."""

    replicas: int = 1
    log_bytes_max: int = LOG_BYTES_MAX
    events_bytes_max: int = EVENTS_BYTES_MAX
    telemetry_bytes_max: int = TELEMETRY_BYTES_MAX
    events_age_ns: int = EVENTS_AGE_NS
    telemetry_age_ns: int = TELEMETRY_AGE_NS


async def declare_streams(client: Client, layout: Layout) -> str:
    """Create what is missing, verify what is there, and return the log's id.

    Raises:
        LogMisconfigured: a stream exists and differs in a setting we rely on, or the servers refuse to create one.
        LogUnavailable: JetStream doesn't answer, or a cluster hasn't enough servers yet.
    """
    log = await _declare(Api(client, LOG_STREAM), _log_config(layout))
    await _declare(Api(client, EVENTS_STREAM), _events_config(layout))
    await _declare(Api(client, TELEMETRY_STREAM), _telemetry_config(layout))
    await _declare(Api(client, LEASES_STREAM), _leases_config(layout))
    return verify_log(log)


def verify_log(info: StreamInfo) -> str:
    """The log's id, once its stream is what an append-only history needs.

    Raises:
        LogMisconfigured: it isn't; says where.
        LogUnavailable: it isn't declared yet.
    """
    if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
        raise LogUnavailable(f"stream {LOG_STREAM} isn't declared yet", nothing_written=True)
    _verify(LOG_STREAM, info, _LOG_NEEDS)
    if info.log_id is None:
        raise LogMisconfigured(f"stream {LOG_STREAM} has no {LOG_ID_KEY} in its metadata: it isn't a log of modelyard")
    if not info.ceiling:
        raise LogMisconfigured(f"stream {LOG_STREAM} has no ceiling (max_bytes): it would fill the disk")
    return info.log_id


async def _declare(api: Api, config: dict[str, object]) -> StreamInfo:
    info = await api.info()
    if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
        failure = await api.create(config)
        # In use: another process declared it between our two questions; what it made is judged like any other.
        if failure is not None and failure.err_code != _NAME_IN_USE:
            raise LogMisconfigured(f"stream {api.stream} can't be created: {failure.description} ({failure.err_code})")
        info = await api.info()
        if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
            # The servers that answered don't know yet of what another one has just made.
            raise LogUnavailable(f"stream {api.stream} isn't to be seen yet", nothing_written=True)
    needs = {key: value for key, value in config.items() if key not in _FREE}
    _verify(api.stream, info, _LOG_NEEDS if api.stream == LOG_STREAM else needs)
    if info.replicas < (wanted := config["num_replicas"]):  # type: ignore[operator]
        raise LogMisconfigured(f"stream {api.stream} has {info.replicas} replicas, {wanted} are asked for")
    return info


def _verify(stream: str, info: StreamInfo, needs: dict[str, object]) -> None:
    if info.error is not None:
        raise LogMisconfigured(f"stream {stream}: {info.error.description} ({info.error.err_code})")
    differences = [
        f"{key} is {info.config.get(key)!r}, needs {need!r}"
        for key, need in needs.items()
        if info.config.get(key) != need
    ]
    differences += [f"{key} is on, must be off" for key in _FORBIDDEN if info.config.get(key)]
    if info.config.get("persist_mode") not in {None, "", "default"}:
        differences.append("persist_mode acknowledges before it writes")
    if differences:
        raise LogMisconfigured(f"stream {stream} isn't what modelyard needs: {'; '.join(differences)}")


_LOG_NEEDS: Final[dict[str, object]] = {
    "subjects": [LOG_SUBJECTS],
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_age": 0,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "deny_delete": True,
    "deny_purge": True,
    "allow_atomic": True,
    "allow_direct": True,
    # Compression makes single reads five times slower, which conflicts wait for.
    "compression": "none",
}

# What operators may choose; replicas have a lower bound, checked apart.
_FREE: Final = frozenset({"name", "num_replicas", "max_bytes", "max_age", "duplicate_window", "metadata"})


def _log_config(layout: Layout) -> dict[str, object]:
    return _LOG_NEEDS | {
        "name": LOG_STREAM,
        "num_replicas": layout.replicas,
        "max_bytes": layout.log_bytes_max,
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "metadata": {LOG_ID_KEY: token_hex(_LOG_ID_BYTES)},
    }


def _events_config(layout: Layout) -> dict[str, object]:
    return {
        "name": EVENTS_STREAM,
        "subjects": [EVENTS_SUBJECTS],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": layout.replicas,
        "max_bytes": layout.events_bytes_max,
        "max_age": layout.events_age_ns,
        "allow_atomic": True,
        "allow_direct": True,
    }


def _telemetry_config(layout: Layout) -> dict[str, object]:
    return {
        "name": TELEMETRY_STREAM,
        "subjects": [TELEMETRY_SUBJECTS],
        "storage": "memory",
        "retention": "limits",
        "discard": "old",
        "num_replicas": layout.replicas,
        "max_bytes": layout.telemetry_bytes_max,
        "max_age": layout.telemetry_age_ns,
        "max_msgs_per_subject": 1,
        "duplicate_window": _SECOND,
        "allow_direct": True,
    }


def _leases_config(layout: Layout) -> dict[str, object]:
    """On disk, so that a server that comes back knows who had what: revisions must never begin anew."""
    return {
        "name": LEASES_STREAM,
        "subjects": [LEASES_SUBJECTS],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "num_replicas": layout.replicas,
        "max_bytes": LEASES_BYTES_MAX,
        "max_age": 0,
        "max_msgs_per_subject": 1,
    }
