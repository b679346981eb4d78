"""One call of the command line: where the API is, who asks, and how the answer is shown.

Invariant: exit 0 is done, 1 refused or failed, 2 wrong usage; `--json` prints the API's own answer.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from modelyard_services.cli import tables

DEFAULT_API: Final = "http://127.0.0.1:7070"
TIMEOUT_SECONDS: Final = 90.0
"""Longer than the longest answer the API holds back: 60 s for a cold model."""

LIST_MAX: Final = 100_000
"""Items in one list on the command line: five times the replicas of the largest fleet we plan for."""

SEGMENT_BYTES_MAX: Final = 8_000
"""Of a name on the command line: the API allows 253 characters, and says so; a URL beyond 64 KiB can't be asked."""

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


class WrongUsageError(Exception):
    """The command line can't be meant so; its text says how it is written."""


class CommandFailedError(Exception):
    """The command was refused or failed; its text is for the person who called.

    `problem` is what the API answered, for programs. `held_up` when other replicas are in the way, which may go any
    moment (rule P4).
    """

    def __init__(self, text: str, *, problem: Mapping[str, Any] | None = None) -> None:
        self.problem = problem or {"code": "failed", "detail": text}
        self.held_up = bool((self.problem.get("extra") or {}).get("held_up"))
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
            response = client.request(method, "/api/v1" + path, params=asked, json=_finite(body))
        if response.is_error:
            raise _problem(response)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise _stranger(response) from None

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
        tables.table(rows, *columns)

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
        tables.line(f"{text} (sequence {sequence})" if changed else f"nothing to do: {text}")
        for warning in (answer or {}).get("warnings", ()):
            tables.line(f"warning: {warning}", style="yellow")

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        headers = {"authorization": f"Bearer {_token(self.token)}"} if self.token else {}
        try:
            with httpx.Client(base_url=self.api, headers=headers, timeout=TIMEOUT_SECONDS) as client:
                yield client
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandFailedError(
                f"can't reach the API at {self.api}: {error}; is `modelyard up` running? (--api, MODELYARD_API)"
            ) from error


def segment(value: str) -> str:
    """`value` as one path segment: names may hold `/`, `:` and `.`, and may be `..`.

    Raises:
        WrongUsageError: it is empty, and would name another route, or longer than any name.
    """
    if not value:
        raise WrongUsageError("a name can't be empty")
    if len(value.encode()) > SEGMENT_BYTES_MAX:
        raise WrongUsageError(f"{value[:20]!r}… ({len(value)} characters) is too long for a name")
    # A client takes `.` and `..` for steps within the path, and would ask for another route.
    return quote(value, safe="").replace(".", "%2E") if value in {".", ".."} else quote(value, safe="")


def _finite(body: Any) -> Any:
    """`body`, whose figures JSON can tell."""
    for field, value in body.items() if isinstance(body, dict) else ():
        if isinstance(value, float) and not math.isfinite(value):
            raise WrongUsageError(f"{field}: {value} is no figure to work with; write seconds or a count, 2.5 say")
    return body


def _token(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise WrongUsageError("--token holds what no token has: only printable ASCII characters (MODELYARD_TOKEN)")
    return token


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _problem(response: httpx.Response) -> CommandFailedError:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "detail" not in body:
        return _stranger(response)
    code = body.get("code", response.status_code)
    unblock = (body.get("extra") or {}).get("unblock")
    helps = f"\nwhat would help: {unblock}" if unblock else ""
    return CommandFailedError(f"{code}: {body['detail']}{helps}", problem=body)


def _stranger(response: httpx.Response) -> CommandFailedError:
    """Something answers there that isn't the API."""
    kind = response.headers.get("content-type", "nothing readable").partition(";")[0]
    return CommandFailedError(
        f"{response.url.copy_with(query=None)} answered {response.status_code} with {kind}, which is not modelyard's "
        "API; where is it? (--api, MODELYARD_API)"
    )
