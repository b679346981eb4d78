"""`modelyard state`, `diff`, `causes`, `why`: what was, what changed, what led to it, and why it was decided so.

Invariant: each shows which sequence and time it is about, so that two people who look see the same.
"""

import json
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from modelyard_services.cli import formats, tables
from modelyard_services.cli.history import event_line
from modelyard_services.cli.rejections import worded
from modelyard_services.cli.session import Session, WrongUsageError, segment

AtOption = Annotated[str | None, Parameter(name="--at")]
Here = Annotated[Session, Parameter(parse=False)]

TOLD_OF_ADDED: Final = ("node", "model", "replica_index", "state", "vram", "holder", "admission", "role", "revision")
"""Fields of an entity that is new or gone, in one line; `--json` has all of them."""

MARKS: Final = {"added": "+", "removed": "-", "changed": "~"}


def register(app: App) -> None:
    """Add the commands to `app`."""
    app.command(state)
    app.command(diff)
    app.command(causes)
    app.command(why)


def state(*, at: AtOption = None, session: Here) -> None:
    """Show everything as it was: nodes, models, replicas, reservations.

    Parameters
    ----------
    at
        A sequence (`modelyard events`) or a time (`2026-01-31T12:00:00Z`); now, if not given.
    """
    answer = session.get("/state", at=at)
    if session.as_json:
        session.show_json(answer)
        return
    tables.line(_point(answer) + f", hash {answer['hash']}")
    nodes = [(node["name"], formats.node_status(node), formats.labels(node), _memory(node)) for node in answer["nodes"]]
    tables.table(nodes, "NODE", "STATUS", "LABELS", "VRAM RESERVED")
    replicas = [
        (f"{one['model']}#{one['replica_index']}", one["node"], one["state"], formats.size(one["vram"]), one["id"])
        for one in sorted(answer["replicas"], key=lambda one: (one["model"], one["node"], one["replica_index"]))
    ]
    tables.line("")
    tables.table(replicas, "REPLICA", "NODE", "STATE", "VRAM", "ID")
    models = [
        (model["name"], model["revision"], f"{model['ready']}/{model['replicas']}", model["last_failure"])
        for model in answer["models"]
    ]
    tables.line("")
    tables.table(models, "MODEL", "REVISION", "READY", "TROUBLE")


def diff(since: str, until: str | None = None, *, kind: str | None = None, session: Here) -> None:
    """Show what changed between two moments, field by field.

    Parameters
    ----------
    since
        A sequence (`modelyard events`) or a time (`2026-01-31T12:00:00Z`).
    until
        The later one; now, if not given.
    kind
        Only changes of these: node, model, replica, reservation, settings, token, registration_token.
    """
    answer = session.list("/diff", **{"from": since, "to": until, "kind": kind})
    if session.as_json:
        session.show_json(answer)
        return
    tables.line(f"from {_point(answer['from'])} to {_point(answer['to'])}: {len(answer['items'])} changed")
    for change in answer["items"]:
        _show_change(change)


def causes(sequence: int, *, session: Here) -> None:
    """Show what led to an event, the first cause first, and what it led to.

    Parameters
    ----------
    sequence
        The event's sequence: `modelyard events`.
    """
    answer = session.get(f"/events/{sequence}/causes")
    if session.as_json:
        session.show_json(answer)
        return
    if not answer["complete"]:
        tables.line("… the story began earlier: modelyard events --correlation " + answer["event"]["correlation"])
    chain = [*answer["causes"], answer["event"]]
    for depth, event in enumerate(chain):
        tables.line("  " * depth + event_line(event), style="bold" if depth == len(chain) - 1 else None)
    for event in answer["effects"]:
        tables.line("  " * len(chain) + event_line(event))


def why(
    model: str | None = None,
    *,
    node: str | None = None,
    decision: str | None = None,
    at: AtOption = None,
    session: Here,
) -> None:
    """Show why a model stands where it stands: decisions, what one more would come to, and every node's judgement.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    node
        Only what concerns this node.
    decision
        Instead: the full account of this decision, node by node, as it was judged then.
    at
        A sequence (`modelyard events`) or a time (`2026-01-31T12:00:00Z`); now, if not given.
    """
    if (model is None) == (decision is None):
        raise WrongUsageError("name a model, or a --decision")
    if decision is not None:
        _why_decided(session, decision)
        return
    path = f"/models/{segment(model or '')}/why" if node is None else f"/nodes/{segment(node)}/why"
    answer = session.get(path, at=at, model=None if node is None else model)
    if session.as_json:
        session.show_json(answer)
        return
    tables.line(f"{answer['model']} at {_point(answer)}: {answer['ready']} ready of {answer['replicas']} replicas")
    _tell("last failure", answer["last_failure"])
    _tell("unsatisfiable", ((answer["schedule"] or {}).get("unsatisfiable") or {}).get("reason"))
    _tell("one more", answer["one_more"])
    _tell("what would help", answer["unblock"])
    tables.line("")
    decisions = [(one["sequence"], one["kind"], one["outcome"], one["id"]) for one in answer["decisions"]]
    tables.table(decisions, "SEQUENCE", "DECISION", "OUTCOME", "ID")
    tables.line("")
    _show_nodes(answer["nodes"])


def _why_decided(session: Session, decision: str) -> None:
    answer = session.get(f"/decisions/{segment(decision)}/account")
    if session.as_json:
        session.show_json(answer)
        return
    tables.line(f"decided on sequence {answer['basis']} by {answer['policy']}, written as {answer['sequence']}")
    if not answer["measured"]:
        tables.line("the measurements were too many to be kept: free memory is what the budgets left", style="yellow")
    elif not answer["agrees"]:
        tables.line("the account doesn't come to the decision's own counts: please report this", style="red")
    _show_nodes(answer["items"])


def _show_nodes(items: list[dict[str, Any]]) -> None:
    tables.table([(one["node"], _verdict(one)) for one in items], "NODE", "WHY NOT")


def _verdict(judged: dict[str, Any]) -> str:
    if judged["filter"] is None:
        scores = judged["scores"] or {}
        told = ", ".join(f"{name} {formats.field(_as_size(name), value)}" for name, value in scores.items())
        return f"it can: {told}"
    return worded(judged)


def _as_size(name: str) -> str:
    return "vram" if name.startswith("vram") else name


def _show_change(change: dict[str, Any]) -> None:
    head = f"{MARKS[change['change']]} {change['kind']} {change['name']}"
    if change["change"] != "changed":
        side = "after" if change["change"] == "added" else "before"
        values = {one["field"]: one[side] for one in change["fields"]}
        told = [f"{name}={_value(name, values[name])}" for name in TOLD_OF_ADDED if values.get(name) is not None]
        tables.line(f"{head}  {' '.join(told)}", style="green" if side == "after" else "red")
        return
    tables.line(head)
    for one in change["fields"]:
        name = one["field"]
        tables.line(f"    {name}: {_value(name, one['before'])} → {_value(name, one['after'])}")


def _value(name: str, value: Any) -> str:
    last = name.rsplit(".", 1)[-1]
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return formats.field(_as_size(last), value)


def _memory(node: dict[str, Any]) -> str:
    return f"{formats.size(node['vram_reserved'])} of {formats.size(node['vram_total'])}"


def _point(answer: dict[str, Any]) -> str:
    return f"sequence {answer['sequence']}" + (f", {answer['time']}" if answer["time"] else "")


def _tell(name: str, text: str | None) -> None:
    if text:
        tables.line(f"{name}: {text}")
