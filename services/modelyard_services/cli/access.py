"""`modelyard token …`, `settings`, `freeze`, `thaw`: who may ask, and what holds for the whole fleet."""

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from modelyard_services.cli import formats
from modelyard_services.cli.session import CommandFailedError, Session, segment

token_app = App(name="token", help="Tokens of clients, and of workers (--registration).")
Here = Annotated[Session, Parameter(parse=False)]


@token_app.command(name="ls")
def list_tokens(*, registration: bool = False, revoked: bool = False, session: Here) -> None:
    """List tokens by name; the tokens themselves are stored nowhere.

    Parameters
    ----------
    registration
        Those that workers register with.
    revoked
        Also those that count no more.
    """
    answer = session.list(_path(registration), revoked=revoked)
    rows = [
        (
            token["name"],
            token["id"],
            token["role"] or "worker",
            formats.age(token["since"]),
            token["created_by"]["name"],
            formats.age(token["last_used"]),
            formats.age(token["revoked"]),
        )
        for token in answer["items"]
    ]
    session.show(answer, rows, "NAME", "ID", "ROLE", "CREATED", "BY", "LAST USED", "REVOKED")


@token_app.command
def create(
    name: str,
    *,
    role: Literal["viewer", "operator", "admin"] = "viewer",
    registration: bool = False,
    session: Here,
) -> None:
    """Create a token and print it once."""
    body = {"name": name} if registration else {"name": name, "role": role}
    answer = session.call("POST", _path(registration), body=body)
    session.done(answer, f"token {name}: {answer['token']}")


@token_app.command
def revoke(name: str, *, registration: bool = False, session: Here) -> None:
    """Revoke a token; who uses it is refused from now on."""
    path = f"{_path(registration)}/{segment(name)}"
    session.done(session.call("DELETE", path), f"token {name} revoked")


@token_app.command
def rotate(name: str, *, registration: bool = False, session: Here) -> None:
    """Give a token another secret and print it once; the one before is refused from now on."""
    answer = session.call("POST", f"{_path(registration)}/{segment(name)}/rotate")
    session.done(answer, f"token {name}: {answer['token']}")


def register(app: App) -> None:
    """Add the fleet-wide commands to `app`."""
    app.command(settings)
    app.command(freeze)
    app.command(thaw)


def settings(*changes: str, session: Here) -> None:
    """Show the settings, or change some: `modelyard settings lost_after_seconds=90`."""
    if changes:
        body = dict(_change(change) for change in changes)
        session.done(session.call("PATCH", "/settings", body=body), f"settings changed: {' '.join(changes)}")
        return
    answer = session.get("/settings")
    session.show(answer, list(answer["settings"].items()), "SETTING", "VALUE")


def freeze(what: Literal["reconciler", "evictions"] = "reconciler", *, session: Here) -> None:
    """Stop automatic changes; commands still work."""
    session.done(session.call("PATCH", "/settings", body={f"{what}_frozen": True}), f"{what} frozen")


def thaw(what: Literal["reconciler", "evictions"] = "reconciler", *, session: Here) -> None:
    """Undo a freeze."""
    session.done(session.call("PATCH", "/settings", body={f"{what}_frozen": False}), f"{what} thawed")


def _path(registration: bool) -> str:  # noqa: FBT001 - it is what it is called
    return "/registration-tokens" if registration else "/tokens"


def _change(change: str) -> tuple[str, Any]:
    key, sign, value = change.partition("=")
    if not sign:
        raise CommandFailedError(f"{change!r} isn't name=value")
    if value in {"true", "false"}:
        return key, value == "true"
    try:
        return key, float(value) if "." in value else int(value)
    except ValueError:
        return key, value  # a word; whether this setting takes it, the API knows
