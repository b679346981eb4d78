"""`modelyard doctor`: what of an installation is well, what is not, and what to do about it."""

# ruff: noqa: PLC0415 - other commands must not pay for what only this one needs

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from modelyard_services.cli.local import local_environment
from modelyard_services.cli.session import DEFAULT_API, CommandFailedError, Session

Here = Annotated[Session, Parameter(parse=False)]


def register(app: App) -> None:
    """Add the command to `app`."""
    app.command(doctor)


def doctor(
    *,
    data_dir: Path = Path("data"),
    nats_url: str | None = None,
    database_url: str | None = None,
    config: Annotated[list[Path] | None, Parameter(negative="")] = None,
    session: Here,
) -> None:
    """Check an installation and say what to mend; exit 1 if anything is broken.

    Parameters
    ----------
    data_dir
        Of a `modelyard up`; says where everything else is.
    nats_url
        The NATS servers, with the control role's credentials.
    database_url
        The read model in PostgreSQL.
    config
        Models and schedules to check; may be given several times.
    """
    from modelyard_services.effects.process import configure_logs
    from modelyard_services.supervisor.doctor.main import examine
    from modelyard_services.supervisor.doctor.target import Asked

    configure_logs("error")
    asked = Asked(
        data_dir=data_dir.resolve(),
        api_url=session.api,
        api_is_default=session.api == DEFAULT_API,
        token=session.token,
        nats_url=nats_url,
        database_url=database_url,
        config_files=tuple(config or ()),
        environment=local_environment(),
    )
    report = asyncio.run(examine(asked))
    rows = [(finding.status, finding.check, finding.found, finding.advice) for finding in report.findings]
    session.show(msgspec.to_builtins(report), rows, "STATUS", "CHECK", "FOUND", "TO DO")
    if not report.ok:
        broken = [finding.check for finding in report.findings if finding.status == "broken"]
        raise CommandFailedError(f"broken: {', '.join(broken)}")
