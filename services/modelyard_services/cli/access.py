"""`modelyard token …`, `settings`, `freeze`, `thaw`: who may ask, and what holds for the whole fleet."""

from typing import Annotated, Literal

from cyclopts import App, Parameter

from modelyard_services.cli import formats
from modelyard_services.cli.assignments import assigned
from modelyard_services.cli.session import Session, WrongUsageError, segment
from modelyard_services.policy.known_settings import rows as known_settings

token_app = App(name="token", help="Tokens of clients, and of workers (--registration).")
settings_app = App(name="settings", help="What holds for the whole fleet and changes while it runs.")
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
    """Create a token and print it once.

    Parameters
    ----------
    name
        Who it is for; events name it as the actor.
    role
        A viewer looks, an operator commands, an admin also makes tokens.
    registration
        One that workers register with; it has no role.
    """
    body = {"name": name} if registration else {"name": name, "role": role}
    answer = session.call("POST", _path(registration), body=body)
    session.done(answer, f"token {name}: {answer['token']}")


@token_app.command
def revoke(name: str, *, registration: bool = False, session: Here) -> None:
    """Revoke a token; who uses it is refused from now on.

    Parameters
    ----------
    name
        Its name: `modelyard token ls`.
    registration
        One that workers register with.
    """
    path = f"{_path(registration)}/{segment(name)}"
    session.done(session.call("DELETE", path), f"token {name} revoked")


@token_app.command
def rotate(name: str, *, registration: bool = False, session: Here) -> None:
    """Give a token another secret and print it once; the one before is refused from now on.

    Parameters
    ----------
    name
        Its name: `modelyard token ls`.
    registration
        One that workers register with.
    """
    answer = session.call("POST", f"{_path(registration)}/{segment(name)}/rotate")
    session.done(answer, f"token {name}: {answer['token']}")


def register(app: App) -> None:
    """Add the fleet-wide commands to `app`."""
    app.command(settings_app)
    app.command(freeze)
    app.command(thaw)


@settings_app.default
def settings(*changes: str, session: Here) -> None:
    """Show the settings, or change some: `modelyard settings lost_after_seconds=90`.

    Parameters
    ----------
    changes
        Each as NAME=VALUE; without any the settings are shown.
    """
    if changes:
        set_settings(*changes, session=session)
    else:
        show_settings(session=session)


@settings_app.command(name="show")
def show_settings(*, session: Here) -> None:
    """Show each setting with its default, its bounds and what it is for, and the nodes of an open mass loss."""
    answer = session.get("/settings")
    known = {name: (default, known.span or None, known.told) for name, default, known in known_settings()}
    # An API of another version may have others.
    rows = [(name, value, *known.get(name, (None, None, None))) for name, value in answer["settings"].items()]
    if answer["mass_loss"]:
        rows.append(("(mass loss of)", ", ".join(answer["mass_loss"]), None, None, None))
    session.show(answer, rows, "SETTING", "VALUE", "DEFAULT", "BOUNDS", "WHAT FOR")


@settings_app.command(name="set")
def set_settings(*changes: str, session: Here) -> None:
    """Change settings, each as NAME=VALUE; all of them or none.

    Parameters
    ----------
    changes
        Each as NAME=VALUE.
    """
    if not changes:
        raise WrongUsageError("name at least one setting, as NAME=VALUE")
    body = dict(assigned(change) for change in changes)
    session.done(session.call("PATCH", "/settings", body=body), f"settings changed: {' '.join(changes)}")


@settings_app.command(name="reset")
def reset_settings(*names: str, session: Here) -> None:
    """Put settings back to their defaults: those named, or all.

    Parameters
    ----------
    names
        The settings to reset; all without.
    """
    if names:
        answer = session.call("PATCH", "/settings", body=dict.fromkeys(names))
    else:
        answer = session.call("PUT", "/settings", body={})
    session.done(answer, f"default: {' '.join(names) or 'all settings'}")


@settings_app.command(name="clear-mass-loss")
def clear_mass_loss(*, session: Here) -> None:
    """Say that the loss of many nodes is real: the replicas of those that stay silent may end."""
    session.done(session.call("POST", "/settings/clear-mass-loss"), "mass loss cleared")


def freeze(what: Literal["reconciler", "evictions"] = "reconciler", *, session: Here) -> None:
    """Stop automatic changes; commands still work.

    Parameters
    ----------
    what
        The reconciler, which places and ends of itself, or evictions, which make room.
    """
    session.done(session.call("PATCH", "/settings", body={f"{what}_frozen": True}), f"{what} frozen")


def thaw(what: Literal["reconciler", "evictions"] = "reconciler", *, session: Here) -> None:
    """Undo a freeze.

    Parameters
    ----------
    what
        What was frozen.
    """
    session.done(session.call("PATCH", "/settings", body={f"{what}_frozen": False}), f"{what} thawed")


def _path(registration: bool) -> str:  # noqa: FBT001 - it is what it is called
    return "/registration-tokens" if registration else "/tokens"
