"""What no test of pure or single-process code may leave behind."""

import threading
from collections.abc import Iterator

import pytest

LEAVING_SECONDS = 5.0
"""How long a thread that was told to end may take on a machine that runs everything else as well."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A thread that goes on draws from `random` while Hypothesis watches it in somebody else's test."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(LEAVING_SECONDS)
        assert not thread.is_alive(), f"{thread.name} is left behind"
