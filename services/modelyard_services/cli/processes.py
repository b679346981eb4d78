"""`modelyard up`, `worker`, `api` …: each process of an installation, started with its settings.

Invariant: settings are read here, once, from options and their `MODELYARD_*` variables; secrets have no option's
default and are best given as variables. Imports are local, so that a query doesn't load a server.
"""

# ruff: noqa: PLC0415 - a query on the command line must not pay for loading servers

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from modelyard_services.cli import local
from modelyard_services.cli.groups import Routing, TelemetrySeconds, router_settings
from modelyard_services.settings import (
    LEASE_SECONDS,
    LEASE_SECONDS_LEAST,
    LEASE_SECONDS_MOST,
    TELEMETRY_SECONDS,
    ApiSettings,
    CalloutSettings,
    NatsSettings,
    ProcessSettings,
    ProjectorSettings,
    ReconcilerSettings,
)

LogLevel = Literal["debug", "info", "warning", "error"]


@Parameter(name="*")
class Common:
    """Options of every control-plane process.

    Parameters
    ----------
    nats_url
        NATS servers, separated by commas, with the control role's credentials.
    nats_tls_ca
        File with the certificate authority of the NATS servers.
    nats_replicas
        Replicas of streams that don't exist yet: 3 on a cluster.
    nats_telemetry_seconds
        How long NATS keeps a node's last heartbeat, for observers that come later; of a stream that doesn't exist yet.
    status_port
        Where to answer /healthz, /readyz and /metrics on loopback; 0 takes a free port.
    log_level
        What to log on stderr.
    """

    def __init__(
        self,
        *,
        nats_url: str,
        nats_tls_ca: str | None = None,
        nats_replicas: int = 1,
        nats_telemetry_seconds: TelemetrySeconds = TELEMETRY_SECONDS,
        status_port: int | None = None,
        log_level: LogLevel = "info",
    ) -> None:
        """Take the options."""
        self.nats = NatsSettings(
            nats_url, tls_ca=nats_tls_ca, replicas=nats_replicas, telemetry_seconds=nats_telemetry_seconds
        )
        self.status_port = status_port
        self.log_level = log_level

    def process(self, name: str) -> ProcessSettings:
        """The settings of one process."""
        return ProcessSettings(name, self.nats, status_port=self.status_port)

    def run(self, name: str, serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        """Run the process `name` until it is told to stop."""
        from modelyard_services.effects.process import run_process
        from modelyard_services.effects.tracing import Traced

        run_process(
            serve if name == "reconciler" else local.ignoring(serve), log_level=self.log_level, traced=Traced(name)
        )


def register(app: App) -> None:
    """Add the commands to `app`."""
    for command in (local.up, local.demo, local.worker, api, router, gateway, registrar, reconciler, projector):
        app.command(command)


def api(
    *,
    host: str = "127.0.0.1",
    port: int = 7070,
    grpc_port: int | None = None,
    database_url: str | None = None,
    routing: Routing | None = None,
    common: Common,
) -> None:
    """Run the control API with the gateway and gRPC.

    Parameters
    ----------
    host
        Where to listen; tokens are required beyond loopback.
    port
        Of HTTP; 0 takes a free one.
    grpc_port
        Of gRPC; none is served without.
    database_url
        The read model in PostgreSQL; history is refused without.
    """
    from modelyard_services.api.main import serve
    from modelyard_services.cli.front import joined
    from modelyard_services.policy.access import is_loopback

    settings = ApiSettings(
        process=common.process("api"),
        host=host,
        port=port,
        grpc_port=grpc_port,
        database_url=database_url,
        open_on_loopback=is_loopback(host),
        router=router_settings(routing),
    )
    common.run("api", lambda stop: serve(settings, stop, joined=partial(joined, settings)))


def router(*, host: str = "127.0.0.1", grpc_port: int = 7071, routing: Routing | None = None, common: Common) -> None:
    """Run a router alone, behind gRPC.

    Parameters
    ----------
    host
        Where to listen; tokens are required beyond loopback.
    grpc_port
        Of gRPC.
    """
    from modelyard_services.router.main import serve
    from modelyard_services.router.settings import RouterProcessSettings

    settings = RouterProcessSettings(
        common.process("router"), grpc_host=host, grpc_port=grpc_port, router=router_settings(routing)
    )
    common.run("router", lambda stop: serve(settings, stop))


def gateway(*, host: str = "127.0.0.1", port: int = 8080, routing: Routing | None = None, common: Common) -> None:
    """Run a gateway alone, with its own router in process.

    Parameters
    ----------
    host
        Where to listen; tokens are required beyond loopback.
    port
        Of HTTP; 0 takes a free one.
    """
    from modelyard_services.gateway.main import serve
    from modelyard_services.gateway.settings import GatewaySettings

    settings = GatewaySettings(common.process("gateway"), host=host, port=port, router=router_settings(routing))
    common.run("gateway", lambda stop: serve(settings, stop))


def registrar(
    *,
    auto_approve: bool = False,
    nats_callout_url: str | None = None,
    nats_issuer_seed: str | None = None,
    common: Common,
) -> None:
    """Run the registrar: decides what workers ask and report, and who may connect to NATS.

    Parameters
    ----------
    auto_approve
        Admit nodes without asking.
    nats_callout_url
        NATS with the callout's credentials.
    nats_issuer_seed
        The key that signs what workers and readers may do.
    """
    from modelyard_services.registrar.main import serve
    from modelyard_services.registrar.settings import RegistrarSettings

    callout = CalloutSettings(nats_callout_url, nats_issuer_seed) if nats_callout_url and nats_issuer_seed else None
    settings = RegistrarSettings(common.process("registrar"), auto_approve=auto_approve, callout=callout)
    common.run("registrar", lambda stop: serve(settings, stop))


def reconciler(
    *,
    config: Annotated[list[Path] | None, Parameter(negative="")] = None,
    model_scheduling: str | None = None,
    model_scheduling_config: Path | None = None,
    reconciler_lease_seconds: Annotated[
        float, Parameter(validator=validators.Number(gte=LEASE_SECONDS_LEAST, lte=LEASE_SECONDS_MOST))
    ] = LEASE_SECONDS,
    common: Common,
) -> None:
    """Run the reconciler: floors, deadlines, drains, liveness; applies the configuration at its start.

    Parameters
    ----------
    config
        Models and schedules, applied at the start; may be given several times, and the later wins.
    model_scheduling
        Schedules as text, a JSON list, applied at the start; the files win over it.
    model_scheduling_config
        A file of schedules, applied at the start; it wins over the text, the files of --config over it.
    reconciler_lease_seconds
        Of several reconcilers one acts; after so long without a sign of it, another does. From 1 to 60.
    """
    from modelyard_services.reconciler.main import serve
    from modelyard_services.reconciler.sources import configuration_settings

    configuration = configuration_settings(
        model_scheduling,
        model_scheduling_config,
        tuple(config or ()),
        environment=local.local_environment(),
    )
    settings = ReconcilerSettings(common.process("reconciler"), configuration, reconciler_lease_seconds)
    common.run("reconciler", lambda stop: serve(settings, stop))


def projector(*, database_url: str, nats_copier_url: str | None = None, common: Common) -> None:
    """Run the projector: the read model in PostgreSQL, and the public lifecycle stream.

    Parameters
    ----------
    database_url
        The read model in PostgreSQL.
    nats_copier_url
        NATS with the copier's credentials, to set up the readers' copy of the lifecycle stream.
    """
    from modelyard_services.projector.main import serve

    settings = ProjectorSettings(common.process("projector"), database_url, copier_url=nats_copier_url)
    common.run("projector", lambda stop: serve(settings, stop))
