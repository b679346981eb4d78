"""`modelyard node …`: the registry of nodes."""

from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from modelyard_projections.fleet.state import Admission, IntentName, LivenessName
from modelyard_services.cli import formats
from modelyard_services.cli.assignments import assigned
from modelyard_services.cli.session import Session, WrongUsageError, segment
from modelyard_services.cli.waiting import until

app = App(name="node", help="Nodes: list, admit, label, cordon, drain, limit, remove.")
FLEETS: Final = "fleet"
"""In place of a figure: the fleet's holds."""

Here = Annotated[Session, Parameter(parse=False)]


@app.command(name="ls")
def ls(
    *,
    admission: Admission | None = None,
    liveness: LivenessName | None = None,
    intent: IntentName | None = None,
    selector: Annotated[str | None, Parameter(alias="-l")] = None,
    session: Here,
) -> None:
    """List nodes.

    Parameters
    ----------
    admission
        Only those that may serve, or may not.
    liveness
        Only those heard, not heard, or gone on purpose.
    intent
        Only those that take work, nothing new, or are being emptied.
    selector
        Nodes by their labels: `tier=gpu, zone in (a,b), key!=value, key, !key`.
    """
    answer = session.list("/nodes", admission=admission, liveness=liveness, intent=intent, selector=selector)
    rows = [
        (
            node["name"],
            formats.node_status(node),
            node["replicas"],
            f"{formats.size(node['vram_reserved'])} / {formats.size(node['vram_total'])}",
            formats.size(node["vram_free"]),
            node["max_replicas_per_model"]["value"],
            formats.labels(node),
            formats.age(node["last_heartbeat"]),
        )
        for node in answer["items"]
    ]
    session.show(answer, rows, "NODE", "STATUS", "REPLICAS", "VRAM RESERVED", "FREE", "SLOTS", "LABELS", "HEARD")


@app.command
def show(node: str, *, session: Here) -> None:
    """Show one node with its facets, labels, devices and budgets.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    """
    answer = session.get(f"/nodes/{segment(node)}")
    rows: list[tuple[str, Any]] = [
        ("admission", answer["admission"]),
        ("liveness", answer["liveness"]),
        ("intent", answer["intent"]),
        ("incarnation", answer["incarnation"]),
        ("address", answer["address"]),
        ("type", answer["node_type"]),
        ("vram total", formats.size(answer["vram_total"])),
        ("vram budget", f"{formats.budget(answer['vram_budget']['value'])} ({answer['vram_budget']['source']})"),
        ("vram reserved", formats.size(answer["vram_reserved"])),
        ("vram free", formats.size(answer["vram_free"])),
        (
            "slots per model",
            f"{answer['max_replicas_per_model']['value']} ({answer['max_replicas_per_model']['source']})",
        ),
        *((name, f"{formats.figure(each['value'])} ({each['source']})") for name, each in answer["watchdog"].items()),
        ("ram free", formats.size(answer["ram_free"])),
        ("disk free", formats.size(answer["disk_free"])),
        ("heard", formats.age(answer["last_heartbeat"])),
    ]
    rows += [(f"gpu {gpu['index']}", _gpu(gpu)) for gpu in answer["gpus"]]
    rows += [(f"label {key}", f"{label['value']} ({label['owner']})") for key, label in answer["labels"].items()]
    session.show(answer, rows, answer["name"], "")


@app.command
def approve(node: str, *, session: Here) -> None:
    """Admit a node: from now on it may take replicas.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    """
    _post(session, node, "approve", f"{node} approved")


@app.command
def reject(node: str, reason: str = "", *, session: Here) -> None:
    """Refuse a node.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    reason
        Why; it is told to its worker, and in the event.
    """
    _post(session, node, "reject", f"{node} rejected", {"reason": reason})


@app.command
def cordon(node: str, *, session: Here) -> None:
    """Nothing new on the node; what runs keeps serving.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    """
    _post(session, node, "cordon", f"{node} cordoned")


@app.command
def uncordon(node: str, *, session: Here) -> None:
    """Undo a cordon.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    """
    _post(session, node, "uncordon", f"{node} schedulable")


@app.command
def drain(node: str, *, deadline_seconds: float | None = None, wait: bool = False, session: Here) -> None:
    """Empty the node: replacements first, requests in flight finish, then its replicas end.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    deadline_seconds
        When what still runs there is ended; by default the setting `drain_deadline_seconds`.
    wait
        Return when it is empty.
    """
    body = {} if deadline_seconds is None else {"deadline_seconds": deadline_seconds}
    _post(session, node, "drain", f"{node} draining", body)
    if wait:
        until(session, f"{node} is empty", lambda: session.get(f"/nodes/{segment(node)}")["replicas"] == 0)


@app.command
def resume(node: str, *, session: Here) -> None:
    """Undo a drain or a cordon. Approves nobody.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    """
    _post(session, node, "resume", f"{node} schedulable")


@app.command
def label(node: str, *assignments: str, session: Here) -> None:
    """Set labels: `modelyard node label gpu-1 tier=gpu zone=a`, all or none.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    assignments
        Labels as key=value.
    """
    if not assignments:
        raise WrongUsageError("name at least one label, as key=value")
    pairs = dict(_pair(assignment) for assignment in assignments)
    answer = session.call("PATCH", f"/nodes/{segment(node)}/labels", body=pairs)
    session.done(answer, f"{node} labelled {' '.join(assignments)}")


@app.command
def unlabel(node: str, *keys: str, session: Here) -> None:
    """Remove labels that an operator set, all or none.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    keys
        The labels' keys.
    """
    if not keys:
        raise WrongUsageError("name at least one label")
    answer = session.call("PATCH", f"/nodes/{segment(node)}/labels", body=dict.fromkeys(keys))
    session.done(answer, f"{node} no longer labelled {' '.join(keys)}")


@app.command
def slots(node: str, value: int | None = None, *, reset: bool = False, enforce: bool = False, session: Here) -> None:
    """Set how many replicas of one model the node takes; `--reset` gives the worker's figure back its force.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    value
        Replicas of one model, from 1 on.
    reset
        The worker's figure again.
    enforce
        End replicas above the figure at once.
    """
    path = f"/nodes/{segment(node)}/max-replicas-per-model"
    _override(session, path, value, reset=reset, enforce=enforce, what=f"{node} slots")


@app.command
def budget(node: str, value: str | None = None, *, reset: bool = False, session: Here) -> None:
    """Set the VRAM that models may use (`80%`, `12GiB`); `--reset` gives the worker's budget back its force.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    value
        A share (`80%`), a size (`12GiB`), or bytes.
    reset
        The worker's budget again.
    """
    path = f"/nodes/{segment(node)}/vram-budget"
    _override(session, path, value, reset=reset, enforce=False, what=f"{node} VRAM budget")


@app.command
def watchdog(node: str, *changes: str, reset: bool = False, session: Here) -> None:
    """Show what ends by itself on the node, and whose figures hold; or set its own, each as NAME=VALUE.

    `modelyard node watchdog gpu-1 max_loaded_models=1 idle_timeout_seconds=fleet`: 0 and false turn it off on this
    node, `fleet` gives one back to the fleet's settings.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    changes
        Figures of its own, each as NAME=VALUE; without any, what holds is shown.
    reset
        Give all of them back to the fleet.
    """
    path = f"/nodes/{segment(node)}/watchdog"
    if reset and changes:
        raise WrongUsageError("give either figures or --reset")
    if reset:
        session.done(session.call("DELETE", path), f"{node} watchdog as the fleet's")
    elif changes:
        given = dict(assigned(change) for change in changes)
        body = {name: None if value == FLEETS else value for name, value in given.items()}
        session.done(session.call("PATCH", path, body=body), f"{node} watchdog set: {' '.join(changes)}")
    else:
        answer = session.get(f"/nodes/{segment(node)}")["watchdog"]
        rows = [(name, each["value"], each["source"], each["fleet_value"]) for name, each in answer.items()]
        session.show(answer, rows, "FIGURE", "VALUE", "SOURCE", "FLEET")


@app.command
def reserve(  # noqa: PLR0913 - what is held, by whom, why, how long
    node: str,
    vram: str,
    *,
    holder: str,
    reason: str = "",
    gpu: int | None = None,
    seconds: float | None = None,
    session: Here,
) -> None:
    """Hold VRAM for something else, a training job say.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    vram
        How much: `12GiB`.
    holder
        Who has it.
    reason
        What for.
    gpu
        On which GPU, where the node has several.
    seconds
        For how long; by default until it is released.
    """
    body = {"vram": vram, "holder": holder, "reason": reason, "gpu": gpu, "seconds": seconds}
    answer = session.call("POST", f"/nodes/{segment(node)}/reservations", body=body)
    session.done(answer, f"{vram} reserved on {node} for {holder}")


@app.command
def release(node: str, reservation: str, *, session: Here) -> None:
    """Release an operator's reservation.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    reservation
        Its id, as `reserve --json` told it.
    """
    answer = session.call("DELETE", f"/nodes/{segment(node)}/reservations/{segment(reservation)}")
    session.done(answer, f"{reservation} released on {node}")


@app.command
def remove(node: str, *, session: Here) -> None:
    """End the node with its labels, replicas and reservations.

    Parameters
    ----------
    node
        Its name: `modelyard nodes`.
    """
    answer = session.call("DELETE", f"/nodes/{segment(node)}")
    session.done(answer, f"{node} removed")


def _post(session: Session, node: str, verb: str, text: str, body: dict[str, Any] | None = None) -> None:
    answer = session.call("POST", f"/nodes/{segment(node)}/{verb}", body=body or {})
    session.done(answer, text)


def _override(session: Session, path: str, value: object, *, reset: bool, enforce: bool, what: str) -> None:
    if reset == (value is not None):
        raise WrongUsageError("give either a value or --reset")
    if reset:
        session.done(session.call("DELETE", path), f"{what} reset")
        return
    answer = session.call("PUT", path, query={"enforce": True} if enforce else None, body={"value": value})
    session.done(answer, f"{what} set to {value}")


def _pair(assignment: str) -> tuple[str, str]:
    key, sign, value = assignment.partition("=")
    if not sign:
        raise WrongUsageError(f"{assignment!r} isn't key=value")
    return key, value


def _gpu(gpu: dict[str, Any]) -> str:
    free = f"{formats.size(gpu['vram_free'])} free of {formats.size(gpu['vram_total'])}"
    return f"{gpu['vendor']} {gpu['name']}, {free}"
