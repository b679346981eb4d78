"""Fixtures that all tests share."""

pytest_plugins = ["tests.support.postgres", "tests.support.nats_servers"]
