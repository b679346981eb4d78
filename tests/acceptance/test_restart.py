"""Replicas replaced under traffic: by `modelyard restart`, and when their model is redefined. No request fails."""

from tests.support.installation import ECHO, Installation, Traffic, segment, until

MODEL = "fresh/echo:1"


def test_a_restart_and_a_new_revision_fail_no_request(shared: Installation) -> None:
    """R6, R8, C2: old replicas serve until the new ones are ready, and what they hold is finished."""
    shared.echo(MODEL, replicas=2)
    before = ids(shared)
    with Traffic(shared, MODEL) as traffic:
        traffic.goes_on()
        assert MODEL in shared.cli("restart", MODEL, "--wait").out
        until(lambda: len(ids(shared)) == 2, "both are back")
        restarted = ids(shared)
        assert not before & restarted
        traffic.goes_on()

        (one, *_rest) = sorted(restarted)
        shared.cli("restart", one, "--wait")
        until(lambda: len(ids(shared)) == 2, "one is back")
        assert restarted & ids(shared) == restarted - {one}

        path = f"/models/{segment(MODEL)}"
        old = shared.get(path)["revision"]
        shared.command("PUT", path, {"command": [*ECHO, "--token-seconds", "0.001"], "vram": "16MiB"})
        new = shared.get(path)["revision"]
        assert new != old
        until(lambda: revisions(shared) == [new, new], "both are of the new revision")
        traffic.goes_on()
    traffic.ended_only_with(200)
    ended = shared.get(f"/events?model={segment(MODEL)}&type=replica.unloaded&limit=100")["items"]
    assert [event["event"]["reason"] for event in ended] == ["requested"] * 3 + ["superseded"] * 2
    full = shared.cli("model", "capacity", MODEL).out
    assert "max_per_node" in full
    shared.cli("schedule", "rm", MODEL)
    shared.cli("unload", MODEL, "--wait")
    shared.cli("model", "rm", MODEL)


def test_what_isnt_ready_isnt_restarted(shared: Installation) -> None:
    """X28."""
    shared.command("PUT", "/models/never", {"command": ECHO, "vram": "16MiB"})
    refused = shared.ask("POST", "/models/never/restart")
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert "nothing restarts" in refused.json()["detail"]
    assert shared.ask("POST", "/replicas/r-nobody/restart").status_code == 404
    assert shared.ask("POST", "/models/nobody/restart").json()["code"] == "model_unknown"
    shared.cli("model", "rm", "never")


def ids(installation: Installation) -> set[str]:
    return {replica["id"] for replica in installation.ready(MODEL)}


def revisions(installation: Installation) -> list[str]:
    return [replica["revision"] for replica in installation.get("/replicas?model=" + segment(MODEL))["items"]]
