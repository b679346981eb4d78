"""`modelyard up` and `modelyard worker`: an installation on this machine, and one node of any installation."""

# ruff: noqa: PLC0415 - a query on the command line must not pay for loading servers

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import yaml
from cyclopts import Parameter

from modelyard_events.ids import LabelKey
from modelyard_events.names import label_value, node_name, operator_label_key
from modelyard_events.sizes import parse_size, parse_vram_budget
from modelyard_services.cli import tables
from modelyard_services.cli.groups import Care, ProbeSeconds, Routing, TelemetrySeconds, router_settings, worker_figures
from modelyard_services.cli.session import CommandFailedError, Session
from modelyard_services.errors import InvalidRequestError
from modelyard_services.settings import PROBE_SECONDS, TELEMETRY_SECONDS
from modelyard_services.supervisor.settings import Endpoints

Serve = Callable[[asyncio.Event], Awaitable[None]]
LogLevel = Literal["debug", "info", "warning", "error"]
Here = Annotated[Session, Parameter(parse=False)]

SECRETS: Final = frozenset({"registration_token", "token", "database_url"})
"""Of the endpoints: not for a terminal that others may look at."""


def up(  # noqa: PLR0913 - one option per setting
    *,
    data_dir: Path = Path("data"),
    host: str = "127.0.0.1",
    port: int = 7070,
    grpc_port: int = 0,
    nats_port: int = 0,
    nats_url: str | None = None,
    nats_telemetry_seconds: TelemetrySeconds = TELEMETRY_SECONDS,
    database_url: str | None = None,
    config: Annotated[list[Path] | None, Parameter(negative="")] = None,
    model_scheduling: str | None = None,
    model_scheduling_config: Path | None = None,
    workers: int = 1,
    vram: str | None = None,
    gpus: str | None = None,
    auto_approve: bool | None = None,
    log_level: LogLevel = "info",
    routing: Routing | None = None,
    care: Care | None = None,
    session: Here,
) -> None:
    """Run everything on this machine: servers, control plane, workers. Data stays in --data-dir.

    Parameters
    ----------
    data_dir
        Where data, logs, sockets and secrets are kept.
    host
        Where API, gateway and NATS listen; tokens are required beyond loopback.
    port
        Of control API and gateway; 0 takes a free one.
    grpc_port
        Of gRPC; 0 takes a free one.
    nats_port
        Of the embedded NATS server; 0 takes a free one.
    nats_url
        Use these NATS servers instead of the embedded one.
    nats_telemetry_seconds
        How long NATS keeps a node's last heartbeat, for observers that come later; of a stream that doesn't exist yet.
    database_url
        Use this PostgreSQL instead of the embedded one.
    config
        Models and schedules, applied at every start; may be given several times, and the later wins.
    model_scheduling
        Schedules as text, a JSON list, applied at every start; the files win over it.
    model_scheduling_config
        A file of schedules, applied at every start; it wins over the text, the files of --config over it.
    workers
        Local workers; they divide what the machine has.
    vram
        What each local worker without a GPU may use of the RAM.
    gpus
        The GPUs that the local workers divide: 0,2, all or none.
    auto_approve
        Admit nodes without asking; by default only on loopback.
    log_level
        What the processes log in the data directory.
    """
    from modelyard_services.effects.process import run_process
    from modelyard_services.policy.access import is_loopback
    from modelyard_services.reconciler.sources import configuration_settings, read_configuration
    from modelyard_services.supervisor.settings import UpSettings
    from modelyard_services.supervisor.up import Running
    from modelyard_services.supervisor.up import up as run_up

    configuration = configuration_settings(
        model_scheduling,
        model_scheduling_config,
        tuple(config or ()),
        environment=local_environment(),
    )
    # A bad file stops the start before anything runs (rule S3).
    warnings = read_configuration(configuration).warnings
    settings = UpSettings(
        data_dir=data_dir,
        host=host,
        port=port,
        grpc_port=grpc_port,
        nats_port=nats_port,
        nats_url=nats_url,
        nats_telemetry_seconds=nats_telemetry_seconds,
        database_url=database_url,
        configuration=configuration,
        workers=workers,
        worker_vram=(vram,) if vram else (),
        worker_gpus=gpus,
        auto_approve=is_loopback(host) if auto_approve is None else auto_approve,
        log_level=log_level,
        router=router_settings(routing),
        worker=worker_figures(care, probe_seconds=router_settings(routing).probe_seconds),
    )

    def on_ready(running: Running) -> None:
        _announce(running.endpoints, tuple(warnings), file=data_dir / "endpoints.json", session=session)

    run_process(lambda stop: run_up(settings, stop, on_ready=on_ready), log_level="warning")


def _announce(endpoints: Endpoints, warnings: tuple[str, ...], *, file: Path, session: Session) -> None:
    """Say where everything is; the secrets stay in `file`."""
    told = {name: value for name, value in msgspec.structs.asdict(endpoints).items() if value is not None}
    told |= dict.fromkeys(SECRETS & told.keys(), "(in endpoints.json)")
    if session.as_json:
        public = {name: value for name, value in told.items() if name not in SECRETS}
        session.show_json(public | {"endpoints_file": str(file), "warnings": list(warnings)})
    else:
        for name, value in told.items():
            tables.line(f"{name:<20} {value}")
        for warning in warnings:
            tables.line(f"warning: {warning}", style="yellow")
        tables.line(f"ready; {file} has the secrets, Ctrl-C stops")
    sys.stdout.flush()


def demo(*, data_dir: Path | None = None, port: int = 0) -> None:
    """Show the main job on real parts: three workers, a real embedding model, a killed worker, one state everywhere.

    Parameters
    ----------
    data_dir
        Where to keep the data; by default a directory that is removed at the end.
    port
        Of API and gateway; 0 takes a free one.
    """
    import tempfile

    from modelyard_services.effects.process import run_process
    from modelyard_services.supervisor.demo import DemoFailedError, demo_settings
    from modelyard_services.supervisor.demo import demo as run_demo

    with tempfile.TemporaryDirectory(prefix="modelyard-demo-") as temporary:
        settings = demo_settings(data_dir or Path(temporary), port=port)
        try:
            run_process(lambda stop: run_demo(settings, stop, tables.console()), log_level="error")
        except DemoFailedError as error:
            raise CommandFailedError(f"the demo failed: {error}") from error


def worker(  # noqa: PLR0913 - one option per setting
    *,
    name: str | None = None,
    advertise: str = "127.0.0.1",
    host: str | None = None,
    endpoints: Path | None = None,
    nats_url: str | None = None,
    nats_tls_ca: str | None = None,
    registration_token: str | None = None,
    config: Path | None = None,
    label: Annotated[list[str] | None, Parameter(negative="")] = None,
    vram: str | None = None,
    vram_budget: str | None = None,
    gpus: str | None = None,
    share: str = "1/1",
    max_replicas_per_model: int = 1,
    node_type: Literal["backend", "agent"] = "backend",
    state_dir: Path = Path("worker-state"),
    port_range: str = "20000-29999",
    allow_command: Annotated[list[str] | None, Parameter(negative="")] = None,
    at_end: Literal["end", "end-with-parent", "keep", "depart"] = "end",
    log_level: LogLevel = "info",
    probe_seconds: ProbeSeconds = PROBE_SECONDS,
    care: Care | None = None,
) -> None:
    """Run one node: registers, runs the models placed on it, tells what happens.

    Parameters
    ----------
    name
        The node's name; by default the machine's.
    advertise
        The address under which routers reach its replicas.
    host
        Where replicas listen; by default loopback when that is advertised, else everywhere.
    endpoints
        The endpoints.json of an installation: its NATS and its registration token.
    nats_url
        The NATS servers, without credentials.
    nats_tls_ca
        File with the certificate authority of the NATS servers.
    registration_token
        What the node registers with.
    config
        A YAML file with these options, by their names.
    label
        key=value; may be given several times.
    vram
        What models may use of the RAM on a node without a GPU.
    vram_budget
        What models may use of the VRAM: 80%, 12GiB.
    gpus
        The GPUs to use: 0,2, all or none.
    share
        Which part of how many of the machine this worker has.
    max_replicas_per_model
        Replicas of one model that the node takes.
    node_type
        A backend hosts models, an agent never does.
    state_dir
        Where it keeps what must survive its restart.
    port_range
        Where replicas listen.
    allow_command
        A pattern of commands that may be run; may be given several times, all are allowed without.
    at_end
        What a stop does with the replicas: end them and depart, or keep them for the next worker. With depart they
        outlive a crash and SIGHUP, for an upgrade, and a stop ends them. With end-with-parent they outlive a crash as
        long as the parent process does, which starts the next worker.
    log_level
        What to log on stderr.
    probe_seconds
        How long a replica may take to answer whether it is well.
    """
    from modelyard_services.effects.process import run_process
    from modelyard_services.effects.tracing import Traced
    from modelyard_services.policy.access import is_loopback
    from modelyard_services.worker.agent.main import serve
    from modelyard_services.worker.agent.settings import WorkerSettings

    given = _from_file(config)
    reached = _reached(endpoints, nats_url or given.get("nats_url"), registration_token)
    reached_at = str(given.get("advertise", advertise))
    part, parts = _share(share)
    settings = WorkerSettings(
        name=node_name(name or given.get("name") or socket.gethostname(), field="name"),
        nats_url=reached[0],
        registration_token=reached[1],
        tls_ca=nats_tls_ca,
        state_dir=state_dir.resolve(),
        host=host or (reached_at if is_loopback(reached_at) else "0.0.0.0"),  # noqa: S104 - others must reach it
        advertise=reached_at,
        node_type=node_type,
        labels=_labels([*given.get("label", []), *(label or [])]),
        vram=None if vram is None else parse_size(vram, field="vram"),
        vram_budget=parse_vram_budget(vram_budget),
        gpus=gpus,
        share=(part, parts),
        max_replicas_per_model=max_replicas_per_model,
        ports=_ports(port_range),
        allow_commands=tuple(allow_command or ()),
        at_end=at_end,
        figures=worker_figures(care, probe_seconds=probe_seconds),
    )
    traced = Traced("worker", node=settings.name)
    run_process(ignoring(lambda stop: serve(settings, stop)), log_level=log_level, traced=traced)


def ignoring(serve: Serve) -> Serve:
    """`serve`, which says first what it ignores: the reconciler alone applies a configuration (rule S3)."""
    import structlog

    from modelyard_services.reconciler.sources import VARIABLES

    async def told(stop: asyncio.Event) -> None:
        for variable in VARIABLES:
            if local_environment().get(variable):
                structlog.get_logger(__name__).warning("ignored", variable=variable, applied_by="the reconciler alone")
        await serve(stop)

    return told


def local_environment() -> dict[str, str]:
    """The environment, read at this edge only."""
    import os

    return dict(os.environ)


def _from_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        given = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise CommandFailedError(f"{config}: {error}") from error
    known = {"name", "advertise", "nats_url", "label"}
    if not isinstance(given, dict) or given.keys() - known:
        raise CommandFailedError(f"{config}: holds other than {', '.join(sorted(known))}")
    return given


def _reached(endpoints: Path | None, nats_url: str | None, token: str | None) -> tuple[str, str]:
    if endpoints is not None:
        try:
            known = msgspec.json.decode(endpoints.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise CommandFailedError(f"{endpoints}: {error}") from error
        nats_url, token = nats_url or known.get("nats_url"), token or known.get("registration_token")
    if not nats_url or not token:
        raise CommandFailedError("give --endpoints FILE, or --nats-url and --registration-token")
    return nats_url, token


def _labels(pairs: list[str]) -> dict[LabelKey, str]:
    found: dict[LabelKey, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise InvalidRequestError(f"{pair!r} isn't key=value", field="label", value=pair)
        found[operator_label_key(key)] = label_value(value)
    return found


def _share(text: str) -> tuple[int, int]:
    part, sign, parts = text.partition("/")
    if not (sign and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise InvalidRequestError(f"{text!r} isn't a share; write 1/1, 2/3", field="share", value=text)
    return int(part) - 1, int(parts)


def _ports(text: str) -> Any:
    from modelyard_services.worker.processes.ports import PortRange

    first, sign, last = text.partition("-")
    if not (sign and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise InvalidRequestError(f"{text!r} isn't a range; write 20000-29999", field="port_range", value=text)
    return PortRange(int(first), int(last))
