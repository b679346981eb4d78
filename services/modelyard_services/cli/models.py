"""`modelyard model …`, `modelyard schedule …`: what is served, and how much of it where."""

from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import App, Parameter

from modelyard_services.cli import formats
from modelyard_services.cli.rejections import worded
from modelyard_services.cli.session import CommandFailedError, Session, segment
from modelyard_services.policy.explain import NO_NODE

model_app = App(name="model", help="Models: how a model is run.")
schedule_app = App(name="schedule", help="Schedules: how many replicas, on which nodes.")
Here = Annotated[Session, Parameter(parse=False)]


@model_app.command(name="ls")
def list_models(*, session: Here) -> None:
    """List models."""
    answer = session.list("/models")
    rows = [
        (
            model["name"],
            "yes" if model["defined"] else "no",
            model["revision"],
            f"{model['ready']}/{model['replicas']}",
            _wanted(model["schedule"]),
            _trouble(model),
        )
        for model in answer["items"]
    ]
    session.show(answer, rows, "MODEL", "DEFINED", "REVISION", "READY", "WANTED", "TROUBLE")


@model_app.command(name="show")
def show_model(model: str, *, session: Here) -> None:
    """Show one model with its spec.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    """
    answer = session.get(f"/models/{segment(model)}")
    rows: list[tuple[str, Any]] = [
        ("revision", answer["revision"]),
        ("ready", f"{answer['ready']} of {answer['replicas']} replicas"),
        ("wanted", _wanted(answer["schedule"])),
        ("trouble", _trouble(answer) or None),
    ]
    rows += [(key, formats.field(key, value)) for key, value in (answer["spec"] or {}).items()]
    session.show(answer, rows, answer["name"], "")


@model_app.command(name="capacity")
def show_capacity(model: str, *, session: Here) -> None:
    """Show how many more replicas of a model fit, node by node, or why none does; and what one more would come to.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    """
    answer = session.get(f"/models/{segment(model)}/capacity")
    rows = [(found["node"], found["replicas"], worded(found)) for found in answer["items"]]
    rows.append(("all nodes", answer["fits"], f"{answer['replicas']} live, wanted {_bounds(answer)}"))
    advice = f"; what would help: {answer['unblock']}" if answer["unblock"] else ""
    rows.append(("one more", "", answer["one_more"] + advice))
    session.show(answer, rows, "NODE", "FITS", "WHY NOT")


@model_app.command(name="set")
def set_model(
    model: str,
    command: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True, consume_multiple=True)] = None,
    *,
    file: Path | None = None,
    vram: str | None = None,
    health: str | None = None,
    session: Here,
) -> None:
    """Define a model, from `--file` (YAML or JSON) or from a command line after `--`.

    Parameters
    ----------
    model
        Its name: any printable characters but `#` and white space.
    command
        The words of its command line, after `--`; with placeholders `{port} {host} {model} {replica} {gpu}`.
    file
        Its fields as YAML or JSON, as under `models` of a configuration file; options win over it.
    vram
        What a replica takes: `12GiB`; by default it is measured or estimated.
    health
        HTTP path that answers 200 when it is ready; by default `/health`.
    """
    body: dict[str, Any] = _read(file) if file else {}
    body |= {"command": command} if command else {}
    body |= {"vram": vram} if vram else {}
    body |= {"health": {"http": health}} if health else {}
    body.pop("name", None)
    answer = session.call("PUT", f"/models/{segment(model)}", body=body)
    session.done(answer, f"model {model} defined")


@model_app.command(name="rm")
def remove_model(model: str, *, session: Here) -> None:
    """End a model's definition; its replicas drain.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    """
    session.done(session.call("DELETE", f"/models/{segment(model)}"), f"model {model} removed")


@model_app.command(name="clear-breaker")
def clear_breaker(model: str, *, session: Here) -> None:
    """Try again now to place a model that was found unsatisfiable.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    """
    answer = session.call("POST", f"/models/{segment(model)}/clear-breaker")
    session.done(answer, f"breaker of {model} cleared")


@schedule_app.command(name="ls")
def list_schedules(*, session: Here) -> None:
    """List schedules."""
    answer = session.list("/schedules")
    rows = [
        (
            schedule["model_name"],
            _wanted(schedule),
            schedule["node_selector"] or "any node",
            schedule["source"],
            "" if schedule["model_defined"] else "model isn't defined",
            _unsatisfiable(schedule),
        )
        for schedule in answer["items"]
    ]
    session.show(answer, rows, "MODEL", "WANTED", "NODES", "SOURCE", "NOTE", "UNSATISFIABLE")


@schedule_app.command(name="show")
def show_schedule(model: str, *, session: Here) -> None:
    """Show one model's schedule.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    """
    answer = session.get(f"/models/{segment(model)}/schedule")
    rows = [(key, formats.field(key, value)) for key, value in answer.items() if key != "unsatisfiable"]
    rows.append(("unsatisfiable", _unsatisfiable(answer) or "-"))
    session.show(answer, rows, model, "")


@schedule_app.command(name="set")
def set_schedule(  # noqa: PLR0913 - one option per field
    model: str,
    *,
    selector: Annotated[str | None, Parameter(alias="-l")] = None,
    replicas: str | None = None,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    placement: str | None = None,
    max_per_node: int | None = None,
    gpus: int | None = None,
    idle_timeout_seconds: float | None = None,
    busy_timeout_seconds: float | None = None,
    target_in_flight: float | None = None,
    rollout: str | None = None,
    affinity: str | None = None,
    file: Path | None = None,
    session: Here,
) -> None:
    """Set a model's whole schedule: what isn't given has its default.

    Parameters
    ----------
    model
        Its name; a schedule for one that isn't defined yet is kept.
    selector
        Nodes by their labels: `tier=gpu, zone in (a,b), key!=value, key, !key`.
    replicas
        `all` for one on every node that the selector matches; excludes the two below.
    min_replicas
        Kept ready at all times; 0 by default.
    max_replicas
        Never more than that; 0, the default, is no limit.
    placement
        `spread` over nodes (default) or `binpack`.
    max_per_node
        At most so many on one node; by default the node's slots.
    gpus
        GPUs of one replica; 1 by default.
    idle_timeout_seconds
        End a replica without a request for so long, down to the minimum.
    busy_timeout_seconds
        End a replica by force whose oldest request runs for longer.
    target_in_flight
        Add a replica when each has more requests than that; by default when all are busy.
    rollout
        On a new revision: `surge`, the new one ready first (default), or `replace`.
    affinity
        `session` or `prefix` keeps requests that belong together on one replica; `none` by default.
    file
        Its fields as YAML or JSON, as under `schedules` of a configuration file; options win over it.
    """
    given = {
        "node_selector": selector,
        "replicas": replicas,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "placement": placement,
        "max_per_node": max_per_node,
        "gpus": gpus,
        "idle_timeout_seconds": idle_timeout_seconds,
        "busy_timeout_seconds": busy_timeout_seconds,
        "target_in_flight": target_in_flight,
        "rollout": rollout,
        "affinity": affinity,
    }
    body = (_read(file) if file else {}) | {key: value for key, value in given.items() if value is not None}
    body.pop("model_name", None)
    answer = session.call("PUT", f"/models/{segment(model)}/schedule", body=body)
    session.done(answer, f"{model} scheduled")


@schedule_app.command(name="rm")
def remove_schedule(model: str, *, session: Here) -> None:
    """Clear a model's schedule; what runs goes on.

    Parameters
    ----------
    model
        Its name: `modelyard models`.
    """
    session.done(session.call("DELETE", f"/models/{segment(model)}/schedule"), f"schedule of {model} cleared")


def _read(file: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CommandFailedError(f"{file}: can't be read: {error}") from error
    if not isinstance(value, dict):
        raise CommandFailedError(f"{file}: holds no mapping")
    return value


def _wanted(schedule: dict[str, Any] | None) -> str:
    if schedule is None:
        return "-"
    if schedule["replicas"] == "all":
        return "all nodes"
    return f"{schedule['min_replicas']}..{schedule['max_replicas'] or ''}"


def _unsatisfiable(schedule: dict[str, Any] | None) -> str:
    found = schedule["unsatisfiable"] if schedule else None
    if found is None:
        return ""
    return f"{found['reason']} ({found['failed_passes']} failed passes; not tried again until {found['until']})"


def _trouble(model: dict[str, Any]) -> str:
    if unsatisfiable := _unsatisfiable(model["schedule"]):
        return f"unsatisfiable: {unsatisfiable}"
    if model["last_failure"]:
        return str(model["last_failure"]).splitlines()[0]
    refusal = model["last_refusal"]
    if refusal is None:
        return ""
    # Only where nobody was asked has nobody a reason.
    return (
        f"{refusal['kind']}: {', '.join(refusal['filters'])}"
        if refusal["filters"]
        else f"waiting for a node: {NO_NODE}"
    )


def _bounds(answer: dict[str, Any]) -> str:
    least, most = answer["min_replicas"], answer["max_replicas"]
    return f"{least} to {'any number' if most is None else most}"
