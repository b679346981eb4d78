"""What counts as listening on this machine only (rule N4): one definition, for tokens, admission and replicas."""

import pytest

from modelyard_services.policy.access import is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "[::1]", "0:0:0:0:0:0:0:1", "localhost", "LocalHost",
             "::ffff:127.0.0.3"],
)  # fmt: skip
def test_this_machines_own_addresses_are_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "128.0.0.1", "126.255.255.255", "::2", "::ffff:10.0.0.1", "[::1",  # noqa: S104
             "localhost.evil", "127.0.0.1.evil", "127.0.0.1/8", "example.com"],
)  # fmt: skip
def test_whatever_others_may_reach_is_not(host: str) -> None:
    assert not is_loopback(host)
