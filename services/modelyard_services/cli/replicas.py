"""`modelyard ps`, `load`, `unload`, `restart`, `logs`: what runs, and making it run."""

import json
import sys
import time
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from modelyard_projections.fleet.state import PhaseName
from modelyard_services.cli import formats, tables
from modelyard_services.cli.names import tell_unknown
from modelyard_services.cli.session import CommandFailedError, Session, segment
from modelyard_services.cli.waiting import until

ReplicaState = Literal[PhaseName, "unreachable"]
Here = Annotated[Session, Parameter(parse=False)]


def register(app: App) -> None:
    """Add the commands to `app`."""
    app.command(ps)
    app.command(load)
    app.command(unload)
    app.command(restart)
    app.command(logs)


def ps(*, model: str | None = None, node: str | None = None, state: ReplicaState | None = None, session: Here) -> None:
    """List what runs: replicas with their node, state, memory and requests in flight.

    Parameters
    ----------
    model
        Only those of this model.
    node
        Only those on this node.
    state
        Only those in this state.
    """
    answer = session.list("/replicas", model=model, node=node, state=state)
    rows = [
        (
            f"{replica['model']}#{replica['replica_index']}",
            replica["node"],
            replica["state"] + (f" ({replica['reason']})" if replica["reason"] else ""),
            formats.size(replica["vram"]),
            ",".join(map(str, replica["gpus"])) or "-",
            replica["in_flight"],
            formats.age(replica["last_used"]),
            formats.age(replica["since"]),
            replica["revision"],
            replica["id"],
        )
        for replica in sorted(answer["items"], key=lambda r: (r["model"], r["node"], r["replica_index"]))
    ]
    columns = ("REPLICA", "NODE", "STATE", "VRAM", "GPUS", "IN FLIGHT", "USED", "SINCE", "REVISION", "ID")
    session.show(answer, rows, *columns)
    if not rows:
        tell_unknown(session, node=node, model=model)


def load(  # noqa: PLR0913 - one option per member of the request
    model: str,
    *,
    node: str | None = None,
    selector: Annotated[str | None, Parameter(alias="-l")] = None,
    replicas: int = 1,
    revision: str | None = None,
    wait: bool = False,
    session: Here,
) -> None:
    """Place one more replica of a model; `--wait` until it is ready or has failed.

    With `--wait`, a load that other replicas hold up is tried again each second, 30 times. With `--revision`, nothing
    is placed if the model was redefined since.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    node
        On this node; by default on the best one.
    selector
        Nodes by their labels: `tier=gpu, zone in (a,b), key!=value, key, !key`.
    replicas
        So many; what fits is loaded, and the refusal of the rest told.
    revision
        Refuse it unless the model's revision is this one.
    wait
        Return when it is ready or has failed.
    """
    body = {"node": node, "selector": selector, "replicas": replicas, "revision": revision}
    answer = placed(session, model, body, patient=wait)
    session.done(answer, f"{model} loading: {', '.join(answer['replicas'])}{_fewer(answer, replicas)}")
    if wait:
        wanted = set(answer["replicas"])
        until(session, f"{model} is ready", lambda: _all_ready(session, model, wanted))


def placed(session: Session, model: str, body: dict[str, Any], *, patient: bool) -> Any:
    """Place it; who is `patient` asks again while others are in the way, as the fleet's settings say (rule P4)."""
    began = time.monotonic()
    while True:
        try:
            return session.call("POST", f"/models/{segment(model)}/replicas", body=body)
        except CommandFailedError as refused:
            if not (patient and refused.held_up):
                raise
            settings = session.get("/settings")["settings"]
            if time.monotonic() - began >= settings["held_up_seconds"]:
                raise
            time.sleep(settings["held_up_retry_seconds"])


def _fewer(answer: dict[str, Any], replicas: int) -> str:
    if not answer["refused"]:
        return ""
    return f"; {len(answer['replicas'])} of {replicas}, for the next was refused: {answer['refused']}"


def unload(target: str, *, node: str | None = None, wait: bool = False, session: Here) -> None:
    """End replicas: all of a model, those on one node, one by `model#index` with --node, or one by its id.

    Parameters
    ----------
    target
        A model, `model#index` with --node, or a replica's id (`modelyard ps`).
    node
        Only those on this node.
    wait
        Return when their processes have ended.
    """
    path, query = _named(session, target, node)
    ended = session.call("DELETE", path, query=query)
    session.done(ended, f"{target} unloading: {', '.join(ended['replicas'])}")
    if wait:
        gone = set(ended["replicas"])
        until(session, f"{target} has ended", lambda: not gone & set(_ids(session)))


def restart(target: str, *, node: str | None = None, wait: bool = False, session: Here) -> None:
    """Replace what is ready by fresh processes, one after another, a new one ready first where it fits.

    All of a model, those on one node, one by `model#index` with --node, or one by its id; `--wait` until it is done.

    Parameters
    ----------
    target
        A model, `model#index` with --node, or a replica's id (`modelyard ps`).
    node
        Only those on this node.
    wait
        Return when the new ones have replaced them.
    """
    path, query = _named(session, target, node)
    answer = session.call("POST", f"{path.removesuffix('/replicas')}/restart", query=query)
    session.done(answer, f"{target} restarting: {', '.join(answer['replicas'])}")
    if wait:
        old = set(answer["replicas"])
        until(session, f"{target} has restarted", lambda: not old & set(_ids(session)))


def logs(
    target: str, *, lines: int = 100, follow: Annotated[bool, Parameter(alias="-f")] = False, session: Here
) -> None:
    """Show the last lines of a replica (by id or `model#index`), or of all replicas of a model by time.

    Parameters
    ----------
    target
        A model, `model#index`, or a replica's id (`modelyard ps`).
    lines
        How many of the last ones, of each replica.
    follow
        Go on with what is written from now on.
    """
    silent = True
    path = f"/replicas/{segment(target)}/logs" if target.startswith("r-") else f"/models/{segment(target)}/logs"
    with session.stream(path, lines=lines, follow=follow) as response:
        for line in response.iter_lines():
            silent = silent and not line
            _print_line(line, session)
    if silent:
        tables.line("no line of a living replica; `modelyard events` has the last of those that ended", errors=True)


def _print_line(line: str, session: Session) -> None:
    if not line:
        return
    if session.as_json:
        sys.stdout.write(line + "\n")
    else:
        entry: dict[str, Any] = json.loads(line)
        sys.stdout.write(f"{entry['time']} {entry['replica']} {entry['text']}\n")
    sys.stdout.flush()


def _named(session: Session, target: str, node: str | None) -> tuple[str, dict[str, str | None]]:
    """Path and query of what `target` names: one replica, or all of a model, or those on one node."""
    if target.startswith("r-") and target in _ids(session):
        return f"/replicas/{segment(target)}", {}
    model, sign, index = target.rpartition("#")
    if not sign:
        return f"/models/{segment(target)}/replicas", {"node": node}
    found = [
        replica["id"]
        for replica in session.list("/replicas", model=model, node=node)["items"]
        if str(replica["replica_index"]) == index
    ]
    if len(found) != 1:
        raise CommandFailedError(f"{target} names {len(found)} replicas; add --node, or give the id (`modelyard ps`)")
    return f"/replicas/{segment(found[0])}", {}


def _ids(session: Session) -> list[str]:
    return [replica["id"] for replica in session.list("/replicas")["items"]]


def _all_ready(session: Session, model: str, wanted: set[str]) -> bool:
    states = {replica["id"]: replica["state"] for replica in session.list("/replicas", model=model)["items"]}
    if missing := wanted - states.keys():
        failure = session.get(f"/models/{segment(model)}")["last_failure"]
        raise CommandFailedError(f"{', '.join(sorted(missing))} ended: {failure or 'see `modelyard events`'}")
    return all(states[replica] == "ready" for replica in wanted)
