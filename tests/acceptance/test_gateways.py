"""Several gateways on one installation are one: they load a cold model once, and see each other's requests."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

import httpx

from tests.support.installation import ECHO, Installation, free_ports, until

MODEL = "cold"
AT_ONCE = 20


@contextlib.contextmanager
def gateways(installation: Installation) -> Iterator[list[str]]:
    """Two gateway processes beside the one of `up`; their URLs."""
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        for port in ports:
            arguments = ("gateway", "--port", str(port), "--nats-url", installation.control_url)
            process = installation.launch(*arguments, log=f"gateway-{port}.log")
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        until(lambda: all(map(_is_ready, urls)), "both gateways are ready")
        yield urls


def test_two_gateways_load_a_cold_model_once(shared: Installation) -> None:
    """T5, T2, X24."""
    slow = [*ECHO, "--startup-seconds", "2", "--token-seconds", "0.05"]
    shared.command("PUT", f"/models/{MODEL}", {"command": slow, "vram": "16MiB"})
    with gateways(shared) as urls:
        statuses = asyncio.run(_ask(urls))
        assert statuses == Counter({200: 2 * AT_ONCE})
        placed = shared.get(f"/events?model={MODEL}&type=replica.placed&limit=100")["items"]
        assert len(placed) == 1, placed
    until(lambda: shared.ready(MODEL)[0]["in_flight"] == 0, "nothing is in flight")
    shared.cli("unload", MODEL, "--wait")
    shared.cli("model", "rm", MODEL)


async def _ask(urls: list[str]) -> Counter[int]:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        body = {"model": MODEL, "prompt": "hello there"}
        asked = [client.post(f"{url}/v1/completions", json=body) for url in urls for _ in range(AT_ONCE)]
        return Counter([answer.status_code for answer in await asyncio.gather(*asked)])


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False
