"""The fleet as the log has it now, for answers that make a worker stop what it runs.

A worker reads its own events itself, and may ask a registrar that hasn't folded them yet: "gone", "unauthorized" or
"no such replica" would be wrong then, and it would act on it.
Invariant: what is answered was decided on everything that stood in the log when the request came.
"""

from typing import Final

from modelyard_projections.fleet import Fleet
from modelyard_services.effects.log.contract import LogUnavailable
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError

CATCH_UP_SECONDS: Final = 1.5
"""The fold is milliseconds behind; one that takes longer is being built, and the worker asks again."""


async def current(runtime: Runtime) -> Fleet:
    """The fleet, once it has passed the log's end as of now.

    Raises:
        UnavailableError: the log is away or can't be read.
        NotYetError: the fold is further behind.
    """
    log = runtime.log
    if log is None or not runtime.ready:
        raise UnavailableError("; ".join(runtime.problems) or "the log is away", retry_after_seconds=2)
    try:
        sequence = await log.last_sequence()
    except LogUnavailable as away:
        raise UnavailableError(away.detail, retry_after_seconds=2) from away
    await runtime.journal.passed(sequence, timeout_seconds=CATCH_UP_SECONDS)
    return runtime.fleet
