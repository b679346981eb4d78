"""What both backends share of the OpenAI API: requests, embeddings answers, the error envelope, identity headers.

Invariant: every answer names the model, pid and port it came from, and a request for another model is refused, so
that a request which reached the wrong process can't look right (trap X22).
"""

import base64
import os
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, TypeVar
from urllib.parse import quote

import msgspec
from aiohttp import web

INPUTS_MAX: Final = 2_048
"""Texts in one embeddings request, as OpenAI has it."""

BODY_BYTES_MAX: Final = 8 * 2**20
"""2,048 texts of a page each."""

SHUTDOWN_SECONDS: Final = 8.0
"""What requests in flight get to finish after SIGTERM: less than the 10 s grace that a launch spec has by default."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = TypeVar("Body", bound="ModelRequest")


class RequestError(Exception):
    """A request that can't be served; becomes OpenAI's error envelope."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        self.param = param
        self.code = code
        self.status = status
        super().__init__(message)


class ModelRequest(msgspec.Struct, frozen=True):
    model: str


class EmbeddingsRequest(ModelRequest, frozen=True):
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def texts(self) -> list[str]:
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not texts or not all(texts):
            raise RequestError("'input' can't be empty or hold an empty string", param="input")
        if len(texts) > INPUTS_MAX:
            raise RequestError(f"'input' holds {len(texts)} texts; at most {INPUTS_MAX} are allowed", param="input")
        return texts


async def body_of(request: web.Request, kind: type[Body]) -> Body:
    """The body as `kind`, if it is for the model served here.

    Raises:
        RequestError: it isn't.
    """
    try:
        body = msgspec.json.decode(await request.read(), type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(str(error), param=str(error).partition("`$.")[2].rstrip("`") or None) from error
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    served = request.app[MODEL]
    if body.model != served:
        message = f"the model {body.model!r} isn't served here; this is {served!r}"
        raise RequestError(message, param="model", code="model_not_found", status=404)
    return body


def embeddings_answer(request: EmbeddingsRequest, vectors: Sequence[Sequence[float]], tokens: int) -> web.Response:
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, request.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_answer({"object": "list", "data": data, "model": request.model, "usage": usage})


def json_answer(content: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")


MODEL: Final = web.AppKey("model", str)


def application(model: str, *, port: int) -> web.Application:
    """An application with errors in OpenAI's envelope, identity headers and the list of its one model."""
    headers = {"X-Backend-Model": quote(model), "X-Backend-Pid": str(os.getpid()), "X-Backend-Port": str(port)}

    async def identify(_: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)

    async def models(_: web.Request) -> web.Response:
        return json_answer({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "modelyard"}]})

    app = web.Application(middlewares=[_envelope], client_max_size=BODY_BYTES_MAX)
    app[MODEL] = model
    app.on_response_prepare.append(identify)
    app.router.add_get("/v1/models", models)
    return app


@web.middleware
async def _envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        return _error(str(error), status=error.status, param=error.param, code=error.code)
    except web.HTTPException as error:
        return _error(error.reason, status=error.status)


def _error(message: str, *, status: int, param: str | None = None, code: str | None = None) -> web.Response:
    content = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json_answer({"error": content}, status=status)


def _encoded(vector: Sequence[float], encoding: Literal["float", "base64"]) -> list[float] | str:
    if encoding == "float":
        return list(vector)
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
