"""The backends that come with modelyard, as real processes asked over HTTP."""

import asyncio
import base64
import itertools
import math
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from modelyard_events.requests import Loaded, LoadFailed
from modelyard_events.spec import LaunchSpec
from tests.support.backends import Told, echo, minilm, request, supervised

CAT, KITTEN, BANK = "A cat sleeps on the sofa.", "The kitten naps on a couch.", "Interest rates rose by half a percent."


@asynccontextmanager
async def backend(state_dir: Path, launch: LaunchSpec, model: str) -> AsyncIterator[httpx.AsyncClient]:
    told = Told()
    async with supervised(state_dir, told) as processes:
        await processes.start(request("r1", launch, model=model))
        loaded = await told.wait(Loaded)
        async with httpx.AsyncClient(base_url=f"http://{loaded.address}") as client:
            yield client


async def embed(client: httpx.AsyncClient, given: object, **more: object) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"model": "minilm", "input": given, **more})


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_related_sentences_are_nearer_than_unrelated_ones(tmp_path: Path) -> None:
    """The weights are the real ones: meaning, not words, decides."""
    async with backend(tmp_path, minilm(), "minilm") as client:
        answer = (await embed(client, [CAT, KITTEN, BANK])).json()
        cat, kitten, bank = (item["embedding"] for item in answer["data"])
        assert len(cat) == 384
        assert math.isclose(cosine(cat, cat), 1.0, abs_tol=1e-5)
        assert cosine(cat, kitten) > 0.5
        assert cosine(cat, bank) < 0.2
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 20


async def test_a_vector_does_not_depend_on_its_neighbours_or_its_encoding(tmp_path: Path) -> None:
    async with backend(tmp_path, minilm(), "minilm") as client:
        alone = (await embed(client, CAT)).json()["data"][0]["embedding"]
        among = (await embed(client, [BANK * 20, CAT], encoding_format="base64")).json()["data"][1]["embedding"]
        assert struct.unpack("<384f", base64.b64decode(among)) == pytest.approx(alone, abs=1e-7)


async def test_it_says_that_it_loads_and_lists_its_model(tmp_path: Path) -> None:
    told = Told()
    async with supervised(tmp_path, told) as processes:
        running = await processes.start(request("r1", minilm(), model="minilm"))
        assert running is not None
        seen = set()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.process.port}") as client:
            while not told.of(Loaded):
                try:
                    seen.add((await client.get("/health")).status_code)
                except httpx.ConnectError:
                    await asyncio.sleep(0.01)
            assert seen - {200} == {503}
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == "minilm"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "minilm", "input": ""}, 400, "input"),
        ({"model": "minilm", "input": []}, 400, "input"),
        ({"model": "minilm", "input": ["a", ""]}, 400, "input"),
        ({"model": "minilm", "input": 7}, 400, "input"),
        ({"model": "minilm", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": "minilm", "input": "a", "dimensions": 7}, 400, "dimensions"),
        ({"model": "minilm", "input": ["a"] * 2049}, 400, "input"),
        ({"input": "a"}, 400, None),
        ({"model": "other", "input": "a"}, 404, "model"),
    ],
)
async def test_a_bad_request_is_answered_in_openais_envelope(
    tmp_path: Path, body: dict[str, object], status: int, param: str | None
) -> None:
    """X22: also a request for another model, which a stale address would bring."""
    launch = minilm() if body.get("dimensions") else echo()
    async with backend(tmp_path, launch, "minilm") as client:
        answer = await client.post("/v1/embeddings", json=body)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert error["message"]


async def test_what_is_not_json_and_what_is_not_there_have_the_envelope_too(tmp_path: Path) -> None:
    async with backend(tmp_path, echo(), "echo") as client:
        assert "JSON" in (await client.post("/v1/embeddings", content=b"{")).json()["error"]["message"]
        assert (await client.get("/nothing")).json()["error"]["message"] == "Not Found"


async def test_a_chat_is_streamed_token_by_token(tmp_path: Path) -> None:
    async with backend(tmp_path, echo("--token-seconds", "0.1"), "echo") as client:
        body = {
            "model": "echo",
            "messages": [{"role": "user", "content": "one two three"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        loop = asyncio.get_running_loop()
        events, times = [], []
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.headers["X-Backend-Model"] == "echo"
            async for line in answer.aiter_lines():
                if line:
                    events.append(line.removeprefix("data: "))
                    times.append(loop.time())
        chunks = [msgspec.json.decode(event) for event in events[:-1]]
        assert events[-1] == "[DONE]"
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:4])
        assert text == "one two three"
        assert chunks[3]["choices"][0]["finish_reason"] == "stop"
        assert chunks[4]["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
        assert all(later - earlier > 0.05 for earlier, later in itertools.pairwise(times[:4]))


async def test_a_completion_keeps_to_its_limit(tmp_path: Path) -> None:
    async with backend(tmp_path, echo(), "echo") as client:
        body = {"model": "echo", "prompt": "one two three", "max_tokens": 2}
        choice = (await client.post("/v1/completions", json=body)).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("one two", "length")


async def test_echo_gives_a_text_the_same_vector_in_every_process(tmp_path: Path) -> None:
    vectors = []
    for state in ("one", "two"):
        async with backend(tmp_path / state, echo(), "minilm") as client:
            vectors.append((await embed(client, "hello")).json()["data"][0]["embedding"])
    assert vectors[0] == vectors[1]


async def test_a_backend_that_cannot_load_its_weights_ends_and_says_why(tmp_path: Path) -> None:
    """A backend that stays unready for ever would hold its slot until the deadline."""
    told = Told()
    broken = "import sys; from modelyard_services.worker.backends import minilm\n"
    broken += "minilm.WEIGHTS = ('no_such_package', 'model.onnx'); sys.argv[1:] = sys.argv[2:]; minilm.main()"
    launch = msgspec.structs.replace(minilm(), command=(sys.executable, "-c", broken, "-m", *minilm().command[3:]))
    async with supervised(tmp_path, told) as processes:
        await processes.start(request("r1", launch, model="minilm"))
        failed = await told.wait(LoadFailed)
        assert failed.exit.exit_code == 1
        assert failed.exit.stderr_tail[-1].startswith("can't load the model: model.onnx is missing; install it with")
