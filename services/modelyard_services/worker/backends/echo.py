"""The smallest backend: it answers with what it was asked, as a stream if asked to, and misbehaves on request.

    python -m modelyard_services.worker.backends.echo --port 8080 --model echo --token-seconds 0.02

A real server process for tests, for text demos without weights, and an example of all that a backend needs.
"""

import argparse
import asyncio
import hashlib
import os
import struct
import sys
from collections.abc import AsyncIterator
from typing import Final, Literal

import grpc
import grpc.aio
import msgspec
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelyard_services.worker.backends.openai import (
    SHUTDOWN_SECONDS,
    EmbeddingsRequest,
    Handler,
    ModelRequest,
    RequestError,
    application,
    body_of,
    embeddings_answer,
    json_answer,
)

DIMENSIONS: Final = 8

FAILED_START_CODE: Final = 3
CRASH_CODE: Final = 70


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class GenerateRequest(ModelRequest, frozen=True, kw_only=True):
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = None


class CompletionRequest(GenerateRequest, frozen=True, kw_only=True):
    prompt: str


class ChatRequest(GenerateRequest, frozen=True, kw_only=True):
    messages: list[ChatMessage]


class Answer(msgspec.Struct, frozen=True):
    """What to say, token by token, and in which of the two shapes."""

    kind: Literal["chat.completion", "text_completion"]
    model: str
    tokens: list[str]
    prompt_tokens: int
    length: bool

    @property
    def usage(self) -> dict[str, int]:
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": len(self.tokens)}
        return counts | {"total_tokens": sum(counts.values())}

    @property
    def finish(self) -> str:
        return "length" if self.length else "stop"

    def whole(self) -> dict[str, object]:
        text = "".join(self.tokens)
        said: dict[str, object] = {"text": text}
        if self.kind == "chat.completion":
            said = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": self.finish, **said}
        return {"id": "echo", "object": self.kind, "created": 0, "model": self.model, "choices": [choice]} | {
            "usage": self.usage
        }

    def chunk(self, text: str | None) -> dict[str, object]:
        """One token, or the end."""
        said: dict[str, object] = {"text": text or ""}
        if self.kind == "chat.completion":
            said = {"delta": {} if text is None else {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": self.finish if text is None else None, **said}
        kind = f"{self.kind}.chunk" if self.kind == "chat.completion" else self.kind
        return {"id": "echo", "object": kind, "created": 0, "model": self.model, "choices": [choice]}


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._loaded = asyncio.Event()
        self._turn = asyncio.Lock()

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        loop.call_later(self._options.startup_seconds, self._load)
        if self._options.crash_after is not None:
            loop.call_later(self._options.crash_after, crash)
        yield

    def _load(self) -> None:
        self._loaded.set()
        say(f"{self._options.model} is loaded")

    async def health(self, _: web.Request) -> web.Response:
        if self._options.hang_health:
            await asyncio.Event().wait()
        loaded = self._loaded.is_set()
        return json_answer({"status": "ok" if loaded else "loading model"}, status=200 if loaded else 503)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await body_of(request, ChatRequest)
        if not body.messages:
            raise RequestError("'messages' can't be empty", param="messages")
        return await self._say(request, body, answer_to("chat.completion", body, body.messages[-1].content))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await body_of(request, CompletionRequest)
        return await self._say(request, body, answer_to("text_completion", body, body.prompt))

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await body_of(request, EmbeddingsRequest)
        texts = body.texts()
        return embeddings_answer(body, [vector_of(text) for text in texts], sum(len(text.split()) for text in texts))

    @web.middleware
    async def in_turn(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """With --serial: one request at a time and health checks wait, as in many a single-threaded server."""
        if not self._options.serial:
            return await handler(request)
        async with self._turn:
            return await handler(request)

    async def _say(self, request: web.Request, body: GenerateRequest, answer: Answer) -> web.StreamResponse:
        if not body.stream:
            await asyncio.sleep(self._options.token_seconds * len(answer.tokens))
            return json_answer(answer.whole())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for token in (*answer.tokens, None):
            await asyncio.sleep(self._options.token_seconds)
            await response.write(event(answer.chunk(token)))
        if body.stream_options.include_usage:
            await response.write(event(answer.chunk(None) | {"choices": [], "usage": answer.usage}))
        await response.write(b"data: [DONE]\n\n")
        return response


def answer_to(kind: Literal["chat.completion", "text_completion"], body: GenerateRequest, text: str) -> Answer:
    words = [word if index == 0 else f" {word}" for index, word in enumerate(text.split())]
    tokens = words if body.max_tokens is None else words[: body.max_tokens]
    return Answer(kind, body.model, tokens, prompt_tokens=len(words), length=len(tokens) < len(words))


def event(content: object) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def vector_of(text: str) -> list[float]:
    """The same for the same text, in any process."""
    digest = hashlib.blake2b(text.encode(), digest_size=2 * DIMENSIONS).digest()
    return [number / 65_535 for number in struct.unpack(f">{DIMENSIONS}H", digest)]


def crash() -> None:
    say("crashing, as told")
    os._exit(CRASH_CODE)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class GrpcHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # its stubs are untyped
    status = health_pb2.HealthCheckResponse.NOT_SERVING

    async def Check(self, *_: object) -> health_pb2.HealthCheckResponse:  # noqa: N802 - gRPC's
        return health_pb2.HealthCheckResponse(status=self.status)


async def serve_grpc_health(host: str, port: int, startup_seconds: float) -> None:
    """Only the gRPC health service, for backends that speak no HTTP."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    servicer = GrpcHealth()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    await asyncio.sleep(startup_seconds)
    servicer.status = health_pb2.HealthCheckResponse.SERVING
    await server.wait_for_termination()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer with what was asked.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="echo")
    parser.add_argument("--token-seconds", type=float, default=0.0, help="pause before each token")
    parser.add_argument("--startup-seconds", type=float, default=0.0, help="health is 503 for so long")
    parser.add_argument("--fail-start", action="store_true", help="end with an error at once")
    parser.add_argument("--crash-after", type=float, help="end abruptly after so many seconds")
    parser.add_argument("--hang-health", action="store_true", help="never answer a health check")
    parser.add_argument("--serial", action="store_true", help="one request at a time, health checks included")
    parser.add_argument("--grpc-health", action="store_true", help="serve the gRPC health service instead of HTTP")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.fail_start:
        say("can't start, as told")
        sys.exit(FAILED_START_CODE)
    if options.grpc_health:
        asyncio.run(serve_grpc_health(options.host, options.port, options.startup_seconds))
        return
    server = Server(options)
    app = application(options.model, port=options.port)
    app.middlewares.append(server.in_turn)
    app.router.add_get("/health", server.health)
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.complete)
    app.router.add_post("/v1/embeddings", server.embeddings)
    app.cleanup_ctx.append(server.lifetime)
    web.run_app(app, host=options.host, port=options.port, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)


if __name__ == "__main__":
    main()
