"""One call of the command line: where the API is, who asks, and how the answer is shown.

Invariant: exit 0 is done, 1 refused or failed, 2 wrong usage; `--json` prints the API's own answer.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

DEFAULT_API: Final = "http://127.0.0.1:7070"
TIMEOUT_SECONDS: Final = 90.0
"""Longer than the longest answer the API holds back: 60 s for a cold model."""

WIDTH_MAX: Final = 10_000
"""Of a line that goes to a file or a program: there a wrapped cell is a broken one."""

LIST_MAX: Final = 100_000
"""Items in one list on the command line: five times the replicas of the largest fleet we plan for."""

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


class CommandFailedError(Exception):
    """The command was refused or failed; its text is for the person who called.

    `held_up` when other replicas are in the way, which may go any moment (rule P4).
    """

    def __init__(self, text: str, *, held_up: bool = False) -> None:
        self.held_up = held_up
        super().__init__(text)


class Session(msgspec.Struct, frozen=True):
    """Where to ask, as whom, and how to show it."""

    api: str = DEFAULT_API
    token: str | None = None
    as_json: bool = False

    def get(self, path: str, **query: Any) -> Any:
        """The answer to a query."""
        return self.call("GET", path, query=query)

    def list(self, path: str, **query: Any) -> Any:
        """The answer to a query for a list, with all its pages as one.

        Raises:
            CommandFailedError: it has more than `LIST_MAX` items.
        """
        answer = self.get(path, **query)
        while answer["next"] is not None:
            page = self.get(path, **query, after=answer["next"])
            answer = page | {"items": [*answer["items"], *page["items"]]}
            if len(answer["items"]) > LIST_MAX:
                raise CommandFailedError(f"{path} has more than {LIST_MAX} items; ask for fewer")
        return answer

    def call(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """The answer to one request.

        Raises:
            CommandFailedError: the API refused it, or can't be reached.
        """
        asked = {key: _text(value) for key, value in (query or {}).items() if value is not None}
        with self._client() as client:
            response = client.request(method, "/api/v1" + path, params=asked, json=body)
        if response.is_error:
            raise _problem(response)
        return response.json() if response.content else None

    @contextmanager
    def stream(self, path: str, **query: Any) -> Iterator[httpx.Response]:
        """A streamed answer.

        Raises:
            CommandFailedError: the API refused it, or can't be reached.
        """
        asked = {key: _text(value) for key, value in query.items() if value is not None}
        with self._client() as client, client.stream("GET", "/api/v1" + path, params=asked, timeout=None) as response:
            if response.is_error:
                response.read()
                raise _problem(response)
            yield response

    def show(self, answer: Any, rows: Sequence[Sequence[object]], *columns: str) -> None:
        """Print `answer` as JSON, or `rows` as a table."""
        if self.as_json:
            self.show_json(answer)
            return
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*["-" if cell is None else str(cell) for cell in row])
        console().print(table)

    def show_json(self, answer: Any) -> None:
        """Print `answer` as JSON."""
        sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")

    def done(self, answer: Any, text: str) -> None:
        """Tell that a command is done: `text` for people, the answer for programs, warnings for both."""
        if self.as_json:
            self.show_json(answer)
            return
        changed = answer.get("changed", True) if isinstance(answer, dict) else True
        sequence = answer.get("sequence") if isinstance(answer, dict) else None
        console().print(f"{text} (sequence {sequence})" if changed else f"nothing to do: {text}", highlight=False)
        for warning in (answer or {}).get("warnings", ()):
            console().print(f"warning: {warning}", style="yellow", highlight=False)

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            with httpx.Client(base_url=self.api, headers=headers, timeout=TIMEOUT_SECONDS) as client:
                yield client
        except httpx.TransportError as error:
            raise CommandFailedError(
                f"can't reach the API at {self.api}: {error}; is `modelyard up` running? (--api, MODELYARD_API)"
            ) from error


def segment(value: str) -> str:
    """`value` as one path segment: names may hold `/`, `:` and `.`.

    Raises:
        CommandFailedError: it is empty, and would name another route.
    """
    if not value:
        raise CommandFailedError("a name can't be empty")
    return quote(value, safe="")


def console() -> Console:
    """Where people read; as wide as the text needs when it isn't a terminal, so that nothing is cut."""
    return Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else WIDTH_MAX)


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _problem(response: httpx.Response) -> CommandFailedError:
    try:
        body = response.json()
    except ValueError:
        return CommandFailedError(f"HTTP {response.status_code}: {response.text[:500]}")
    code, detail = body.get("code", response.status_code), body.get("detail", response.text[:500])
    extra = body.get("extra") or {}
    helps = f"\nwhat would help: {extra['unblock']}" if "unblock" in extra else ""
    return CommandFailedError(f"{code}: {detail}{helps}", held_up=bool(extra.get("held_up")))
