"""Why a projection or the relay stands still until somebody acts.

```
ModelyardError
├── ProjectionStoppedError  projection_stopped   an event can't be read or folded; all before it is projected
├── RivalDiffersError       rival_differs        another version of the projector writes the same rows
└── PublicStreamError       public_stream_differs the lifecycle stream isn't this log's
```

Invariant: each says what to do; none is retried, because nothing would change.
"""

from typing import ClassVar

from modelyard_services.errors import ModelyardError


class ProjectionStoppedError(ModelyardError):
    code: ClassVar[str] = "projection_stopped"

    def __init__(self, sequence: int, problem: str) -> None:
        self.sequence = sequence
        super().__init__(f"stopped before {problem}; upgrade this process or repair the log, then start it again")


class RivalDiffersError(ModelyardError):
    code: ClassVar[str] = "rival_differs"

    def __init__(self, sequence: int, *, own: str, found: str) -> None:
        super().__init__(
            f"at sequence {sequence} the rows' hash is {found}, ours is {own}: another version of the projector writes "
            "the same database; stop the older one, then start this one again"
        )


class PublicStreamError(ModelyardError):
    code: ClassVar[str] = "public_stream_differs"
