"""What the doctor makes of what it saw: each verdict at the edges of its limits."""

import pytest

from modelyard_services.supervisor.doctor import findings
from modelyard_services.supervisor.doctor.findings import GIB, Finding, Log, Projected

LOG = Log("log-1", 5_000)


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (findings.python_version((3, 11)), "ok"),
        (findings.python_version((3, 10)), "broken"),
        (findings.disk(5 * GIB, where="/d"), "ok"),
        (findings.disk(5 * GIB - 1, where="/d"), "warning"),
        (findings.disk(GIB - 1, where="/d"), "broken"),
        (findings.secret_files({"a": 0o600, "b": 0o400}), "ok"),
        (findings.secret_files({"a": 0o600, "b": 0o640}), "broken"),
        (findings.descriptors(4_096), "ok"),
        (findings.descriptors(1_024), "warning"),
        (findings.leftovers([], owned=False), "ok"),
        (findings.leftovers(["nats"], owned=True), "ok"),
        (findings.leftovers(["nats"], owned=False), "warning"),
        (findings.nats_version((2, 12, 0)), "ok"),
        (findings.nats_version((2, 11, 9)), "broken"),
        (findings.nats_version((3, 0, 0)), "ok"),
        (findings.log_fill(79, 100), "ok"),
        (findings.log_fill(80, 100), "warning"),
        (findings.log_fill(90, 100), "broken"),
        (findings.clock(2.0), "ok"),
        (findings.clock(-2.1), "warning"),
        (findings.peers(1, away=(), behind=()), "ok"),
        (findings.lease("host/1/r", seconds=5, age_seconds=4.9), "ok"),
        (findings.lease("host/1/r", seconds=5, age_seconds=5.1), "broken"),
        (findings.lease("host/1/r", seconds=5, age_seconds=None), "ok"),
        (findings.lease(None, seconds=0, age_seconds=None), "warning"),
        (findings.peers(3, away=(), behind=()), "ok"),
        (findings.peers(3, away=(), behind=("n2",)), "warning"),
        (findings.peers(5, away=("n2",), behind=()), "warning"),
        (findings.peers(3, away=("n2",), behind=()), "broken"),
        (findings.read_model(None, LOG), "warning"),
        (findings.read_model(Projected("log-1", 4_000), LOG), "ok"),
        (findings.read_model(Projected("log-1", 3_999), LOG), "warning"),
        (findings.read_model(Projected("log-1", 4_000, "unknown tag"), LOG), "broken"),
        (findings.read_model(Projected("log-2", 5_000), LOG), "broken"),
        (findings.read_model(Projected("log-2", 5_000), None), "ok"),
        (findings.fleet({}, {}), "warning"),
        (findings.fleet({"a": "approved"}, {"a": "alive"}), "ok"),
        (findings.fleet({"a": "pending"}, {"a": "alive"}), "warning"),
        (findings.fleet({"a": "approved"}, {"a": "lost"}), "warning"),
        (findings.readiness("api", []), "ok"),
        (findings.readiness("api", ["nats: away"]), "broken"),
    ],
)
def test_a_verdict_says_what_to_do_whenever_it_is_not_ok(finding: Finding, status: str) -> None:
    assert finding.status == status
    assert bool(finding.advice) == (status != "ok")


def test_who_waits_for_an_operator_is_named() -> None:
    found = findings.fleet({"b": "pending", "a": "pending", "c": "approved"}, {"a": "alive", "b": "alive", "c": "lost"})
    assert found.found == "pending: a, b; lost: c"
    assert "node approve" in found.advice
    assert "node remove" in found.advice
