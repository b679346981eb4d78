"""A router process for tests: it takes a lease and holds it, or asks many times at once and says what it got.

python -m tests.support.yard_router NATS_URL MODEL [TIMES]
"""

import asyncio
import sys

from modelyard_services.effects.process import configure_logs
from modelyard_services.errors import ModelyardError
from modelyard_services.router.router import Ask, Router
from tests.support.yard import a_router


async def main(url: str, model: str, times: int) -> None:
    async with a_router(url) as router:
        if times:
            for line in await asyncio.gather(*[ask(router, model) for _ in range(times)]):
                print(line)  # noqa: T201 - the test reads it
            return
        lease = await router.route(model)
        print("lease", lease.lease, flush=True)  # noqa: T201
        await asyncio.Event().wait()


async def ask(router: Router, model: str) -> str:
    try:
        await router.route(model, Ask(wait_seconds=1.0))
    except ModelyardError as error:
        return error.code
    return "lease"


if __name__ == "__main__":
    configure_logs("error")
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))
