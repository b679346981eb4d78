"""Every error a user can meet, with the code a program reads.

```
ModelyardError
├── InvalidRequestError      invalid_request     the request can't be read; names field and value
│   ├── InvalidEntriesError  invalid_request     several faults at once, each with file, line and field
│   └── InvalidQueryError    invalid_query       a query parameter is unknown, or can't have that value
├── NotFoundError            not_found           no such node, replica, reservation, lease …
│   └── ModelUnknownError    model_unknown       no such model
├── ConflictError            conflict            the entity is in a state that forbids it
├── PreconditionError        precondition_failed the entity moved on since `If-Match`
├── IdempotencyError         idempotency_mismatch another body under the same key
├── UnauthorizedError        unauthorized        no token, or an unknown one
├── ForbiddenError           forbidden           the role doesn't allow it
├── ModelLoadingError        model_loading       on its way; ask again after `retry_after_seconds`
├── NoCapacityError          no_capacity         fits when something frees
├── UnsatisfiableError       unsatisfiable       nothing about load can help
├── PayloadTooLargeError     payload_too_large   a body beyond a named limit
├── OverloadedError          overloaded          a named limit is reached; ask again later
├── ReplicaFailedError       replica_failed      the process behind the request failed
├── StaleRevisionError       stale_revision      another revision is in force
├── StaleFactError           stale_fact          a worker told of a life or a replica that is over
├── NodeGoneError            gone                the node was removed; register afresh
├── NameTakenError           name_taken          another live worker has the name
├── NotYetError              not_yet             the read model hasn't passed `min_seq`
├── UnavailableError         unavailable         log or database is away; says whether the outcome is known
└── ContendedError           contended           too many conflicts in a row; nothing was done
```

Invariant: `detail` says what to do about it; `field` and `value` are there when one field is at fault.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final


class ModelyardError(Exception):
    """An expected failure, told to whoever asked.

    Attributes:
        code: the machine-readable name, stable for ever.
        retryable: whether the same request can succeed later without a change.
        field: the field at fault, if one is.
        value: what stood there.
        retry_after_seconds: when to ask again, if that is known.
        extra: further members of the answer (state, node, progress …).
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        value: object = None,
        retry_after_seconds: float | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        self.detail = detail
        self.field = field
        self.value = value
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra or {}
        super().__init__(detail)


class InvalidRequestError(ModelyardError):
    code = "invalid_request"


class InvalidEntriesError(InvalidRequestError):
    """Every fault of a configuration or a body, told together; nothing of it was applied."""

    def __init__(self, faults: Sequence[str], *, errors: Sequence[Mapping[str, object]], field: str | None) -> None:
        self.errors = [dict(error) for error in errors]
        # A line each: a file with ten faults is mended line by line.
        told = faults[0] if len(faults) == 1 else "\n  ".join([f"{len(faults)} faults, nothing was applied:", *faults])
        super().__init__(told, field=field)


class InvalidQueryError(InvalidRequestError):
    """A parameter after the `?` that the route doesn't know, stands there twice, or can't have that value.

    An answer would be one to another question: everything for a mistyped filter, nothing for a mistyped state.
    """

    code = "invalid_query"


class NotFoundError(ModelyardError):
    code = "not_found"


class ModelUnknownError(NotFoundError):
    code = "model_unknown"


class ConflictError(ModelyardError):
    code = "conflict"


class PreconditionError(ModelyardError):
    code = "precondition_failed"


class IdempotencyError(ModelyardError):
    code = "idempotency_mismatch"


class UnauthorizedError(ModelyardError):
    code = "unauthorized"


class ForbiddenError(ModelyardError):
    code = "forbidden"


class ModelLoadingError(ModelyardError):
    code = "model_loading"
    retryable = True


class NoCapacityError(ModelyardError):
    code = "no_capacity"
    retryable = True


class UnsatisfiableError(ModelyardError):
    code = "unsatisfiable"


class PayloadTooLargeError(ModelyardError):
    code = "payload_too_large"


class OverloadedError(ModelyardError):
    code = "overloaded"
    retryable = True


class ReplicaFailedError(ModelyardError):
    code = "replica_failed"
    retryable = True


class BusyTimeoutError(ReplicaFailedError):
    """The request kept its replica busy for as long as one may: another try would keep the next one as long (C8)."""

    retryable = False


class StaleRevisionError(ModelyardError):
    code = "stale_revision"


class StaleFactError(ModelyardError):
    code = "stale_fact"


class NodeGoneError(ModelyardError):
    code = "gone"


class NameTakenError(ModelyardError):
    code = "name_taken"


class NotYetError(ModelyardError):
    code = "not_yet"
    retryable = True


class UnavailableError(ModelyardError):
    code = "unavailable"
    retryable = True


class ContendedError(ModelyardError):
    code = "contended"
    retryable = True


STATUS_OF: Final[Mapping[str, int]] = {
    "invalid_request": 400,
    "invalid_query": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_unknown": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "contended": 409,
    "stale_revision": 409,
    "stale_fact": 409,
    "name_taken": 409,
    "gone": 410,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "idempotency_mismatch": 422,
    "unsatisfiable": 422,
    "overloaded": 429,
    "internal": 500,
    "replica_failed": 502,
    "model_loading": 503,
    "no_capacity": 503,
    "not_yet": 503,
    "unavailable": 503,
}
"""HTTP status by error code (rule T8); every code of errors.py is here, which a test holds."""
