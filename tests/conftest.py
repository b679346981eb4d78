"""Fixtures that all tests share, and how patient they are."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.postgres", "tests.support.nats_servers"]

# How long a draw takes says how busy the machine is, and nothing of us.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
