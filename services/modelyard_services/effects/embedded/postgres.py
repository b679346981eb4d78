"""The embedded PostgreSQL: the real server on loopback, our direct child, in `<data-dir>/postgres`.

Invariant: what it acknowledged is on disk (fsync is never off), a data directory is either complete or absent, and the
program connects as a user who owns its database and nothing more.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from modelyard_services.effects.embedded.binaries import postgres_program
from modelyard_services.effects.embedded.errors import ChildFailedError, DataDirectoryUnusableError
from modelyard_services.effects.embedded.ports import address, port_for
from modelyard_services.effects.embedded.private import private_directory, read_private, write_private
from modelyard_services.effects.embedded.privileges import unprivileged
from modelyard_services.effects.embedded.process import Child, RunAs, StopStep, launcher

INITDB_SECONDS_MAX = 120.0
"""It takes 0.6 s here; a slow disk that must sync 40 MB may take a hundred times that."""

READY_ANSWER_SECONDS_MAX = 2
"""PostgreSQL's own smallest connection time limit."""

START_SECONDS_MAX = 60.0
"""Recovery after a crash replays at most `max_wal_size`, 1 GB."""

SUPERUSER = "postgres"
USER = "modelyard"
DATABASE = "modelyard"

_PASSWORD_BYTES = 32

_SETTINGS = {
    # No socket: the path of one would have to be short and open to the server's user.
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    # The server's log is ours to keep; without it nobody finds out why a statement failed.
    "log_line_prefix": "%m [%p] ",
    # Times are compared with the log's, which are UTC.
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class _Kept(msgspec.Struct, frozen=True):
    """What must not change from start to start."""

    superuser_password: str
    user_password: str
    port: int


class EmbeddedPostgres(msgspec.Struct, frozen=True):
    """A server that is set up, and started as `child` by a process tree.

    Attributes:
        child: the server process; it counts as ready once `url` can be connected to.
        url: of the program's own database, `postgresql://…`; secret.
        superuser_url: for what `url` may not do; secret.
    """

    child: Child
    url: str
    superuser_url: str


def embedded_postgres(data_directory: Path, *, host: str = "127.0.0.1", port: int = 0) -> EmbeddedPostgres:
    """Set up a server in `data_directory`/postgres: the first time by initdb, which takes about half a second.

    Raises:
        PrivilegeError: we are root and can't run it as anybody else.
        ChildFailedError: initdb failed.
    """
    directory = private_directory(data_directory.resolve() / "postgres")
    kept = _kept(directory, host=host, port=port)
    cluster = directory / "cluster"
    server = postgres_program("postgres")
    run_as = unprivileged(programs=server, data=cluster)
    if not cluster.exists():
        _initialise(cluster, password=kept.superuser_password, run_as=run_as)
    superuser_url = f"postgresql://{SUPERUSER}:{kept.superuser_password}@{address(host, kept.port)}/postgres"
    settings = {**_SETTINGS, "listen_addresses": host, "port": str(kept.port)}
    arguments = (f"--{name}={value}" for name, value in settings.items())
    return EmbeddedPostgres(
        child=Child(
            name="postgres",
            argv=(str(server), "-D", str(cluster), *arguments),
            ready=lambda: _is_ready(superuser_url, kept.user_password),
            before=lambda: _clear_stale_lock(cluster),
            # A current directory that it may read; it changes to its data directory by itself.
            directory=Path("/"),
            log_file=directory / "server.log",
            start_seconds_max=START_SECONDS_MAX,
            # "Fast": sessions are cut off, a checkpoint is written. "Immediate": the next start recovers.
            stop=(StopStep(signal.SIGINT, 10.0), StopStep(signal.SIGQUIT, 5.0)),
            death_signal=signal.SIGQUIT,
            run_as=run_as,
        ),
        url=f"postgresql://{USER}:{kept.user_password}@{address(host, kept.port)}/{DATABASE}",
        superuser_url=superuser_url,
    )


def _kept(directory: Path, *, host: str, port: int) -> _Kept:
    file = directory / "credentials.json"
    before = read_private(file, _Kept)
    kept = _Kept(
        superuser_password=_password() if before is None else before.superuser_password,
        user_password=_password() if before is None else before.user_password,
        port=port_for(host, wanted=port, previous=None if before is None else before.port),
    )
    if kept != before:
        write_private(file, msgspec.json.encode(kept))
    return kept


def _password() -> str:
    return secrets.token_urlsafe(_PASSWORD_BYTES)


def _initialise(cluster: Path, *, password: str, run_as: RunAs | None) -> None:
    """Make the cluster beside its place and move it there complete, so a crash leaves no half of one."""
    with _scratch(cluster, run_as) as scratch:
        password_file = scratch / "password"
        password_file.write_text(password)
        new = scratch / "cluster"
        new.mkdir(mode=0o700)
        if run_as is not None:
            for path in (password_file, new):
                os.chown(path, run_as.uid, run_as.gid)
        _run_initdb(new, password_file=password_file, run_as=run_as)
        new.rename(cluster)


@contextmanager
def _scratch(cluster: Path, run_as: RunAs | None) -> Iterator[Path]:
    for leftover in cluster.parent.glob("initdb.*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="initdb.", dir=cluster.parent) as name:
        if run_as is not None:
            os.chown(name, run_as.uid, run_as.gid)
        yield Path(name)


def _run_initdb(cluster: Path, *, password_file: Path, run_as: RunAs | None) -> None:
    initdb = (
        str(postgres_program("initdb")),
        *("-D", str(cluster), "--username", SUPERUSER, "--pwfile", str(password_file), "--auth", "scram-sha-256"),
        # The same order of text on every machine, whatever its locales are.
        *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
        "--no-instructions",
    )
    done = subprocess.run(  # noqa: S603 - our own arguments
        launcher(initdb, death_signal=signal.SIGKILL, run_as=run_as),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=INITDB_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise ChildFailedError(f"initdb ended with {done.returncode}:\n{done.stdout}{done.stderr}", field="child")


def _clear_stale_lock(cluster: Path) -> None:
    """Remove the lock file of a server that was killed, if its pid now belongs to a program that isn't PostgreSQL.

    The server itself sees to every other stale lock; this one it can't tell from a rival's. Where any PostgreSQL has
    the pid the file stays: it also guards the shared memory that the old server's sessions may still write.
    """
    lock = cluster / "postmaster.pid"
    if not lock.exists():
        return
    pid = int(lock.read_text().split("\n", 1)[0])
    try:
        name = psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return
    if name != "postgres":
        lock.unlink()


async def _is_ready(superuser_url: str, user_password: str) -> bool:
    """Whether it takes connections; the first time, make user and database."""
    options = make_conninfo(superuser_url, connect_timeout=READY_ANSWER_SECONDS_MAX)
    try:
        connection = await psycopg.AsyncConnection.connect(options, autocommit=True)
    except psycopg.OperationalError:
        return False
    async with connection:
        try:
            await _ensure_database(connection, user_password)
        except psycopg.errors.DiskFull as full:
            problem = f"PostgreSQL: {str(full).splitlines()[0]}; free some of its disk, or choose another --data-dir"
            raise DataDirectoryUnusableError(problem, field="data_dir") from full
    return True


async def _ensure_database(connection: psycopg.AsyncConnection, user_password: str) -> None:
    """Each step by itself: a crash between them is mended by the next start."""
    user, database = sql.Identifier(USER), sql.Identifier(DATABASE)
    if not await _has(connection, "SELECT 1 FROM pg_roles WHERE rolname = %s", USER):
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, sql.Literal(user_password))
        await connection.execute(create)
    if not await _has(connection, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))


async def _has(connection: psycopg.AsyncConnection, query: str, name: str) -> bool:
    return await (await connection.execute(query, (name,))).fetchone() is not None
