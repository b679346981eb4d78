"""`modelyard up`, `worker`, `api` …: the starter of each process."""

from cyclopts import App


def register(app: App) -> None:
    """Add the commands to `app`."""
    del app
