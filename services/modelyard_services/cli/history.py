"""`modelyard events`: what happened, page by page or as it happens."""

import json
import sys
from datetime import datetime
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from rich.console import Console

from modelyard_services.cli.names import tell_unknown
from modelyard_services.cli.session import Session
from modelyard_services.cli.tables import console

TOLD_LATE_SECONDS: Final = 2.0
"""Between what happened on a node and its event: below that it is only two clocks that differ a little."""

Here = Annotated[Session, Parameter(parse=False)]


def register(app: App) -> None:
    """Add the commands to `app`."""
    app.command(events)


def events(  # noqa: PLR0913 - one option per filter
    *,
    after: int | None = None,
    node: str | None = None,
    model: str | None = None,
    type_: Annotated[str | None, Parameter(name="--type")] = None,
    actor: str | None = None,
    correlation: str | None = None,
    limit: int = 100,
    follow: Annotated[bool, Parameter(alias="-f")] = False,
    session: Here,
) -> None:
    """Show events with actor and cause: the newest `--limit`, or from `--after` on; `--follow` goes on.

    Parameters
    ----------
    after
        From this sequence on, it excluded.
    node
        Only those of this node.
    model
        Only those of this model.
    type_
        Only those of this type: `replica.placed`.
    actor
        Only what this one did: a name, as `ACTOR` shows after the colon.
    correlation
        Only what one command led to: its correlation id, in `--json`.
    limit
        At most so many.
    follow
        Go on with what happens from now on.
    """
    filters = {"node": node, "model": model, "type": type_, "actor": actor, "correlation": correlation}
    if follow:
        tell_unknown(session, node=node, model=model)
        _follow(session, after, filters)
        return
    if after is None and not any(filters.values()):
        after = max(0, session.get("/replicas", limit=1)["sequence"] - limit)
    answer = session.get("/events", after=after, limit=limit, **filters)
    if not answer["items"]:
        tell_unknown(session, node=node, model=model)
    if session.as_json:
        session.show_json(answer)
        return
    out = console()
    for event in answer["items"]:
        _print(event, out)


def _follow(session: Session, after: int | None, filters: dict[str, Any]) -> None:
    out = console()
    with session.stream("/events/stream", after=after, **filters) as response:
        for line in response.iter_lines():
            if not line.startswith("data:"):
                continue
            text = line.removeprefix("data:").strip()
            if session.as_json:
                sys.stdout.write(text + "\n")
            else:
                _print(json.loads(text), out)
            sys.stdout.flush()


def _print(event: dict[str, Any], out: Console) -> None:
    out.print(event_line(event), highlight=False, markup=False)


def event_line(event: dict[str, Any]) -> str:
    """An event with actor and cause in one line."""
    actor = f"{event['actor']['kind']}:{event['actor']['name']}"
    cause = f" ← {event['causation']}" if event.get("causation") else ""
    cause += f" (occurred {event['occurred_at'][11:23]})" if _told_late(event) else ""
    body = {key: value for key, value in event["event"].items() if key not in {"type", "decision", "launch", "spec"}}
    told = " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in body.items())
    tag = event["type"].rsplit(".", 1)[0]
    return f"{event['sequence']:>6} {event['time'][11:23]} {tag:<26} {actor:<24} {told}{cause}"


def _told_late(event: dict[str, Any]) -> bool:
    """Whether a worker told of it long after it happened, by its own clock."""
    occurred_at = event.get("occurred_at")
    if occurred_at is None:
        return False
    apart = datetime.fromisoformat(event["time"]) - datetime.fromisoformat(occurred_at)
    return abs(apart.total_seconds()) >= TOLD_LATE_SECONDS
