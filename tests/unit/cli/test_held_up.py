"""`modelyard load --wait` while others are in the way: it asks again as the fleet's settings say (rule P4)."""

from typing import Any

import msgspec
import pytest

from modelyard_services.cli.replicas import placed
from modelyard_services.cli.session import CommandFailedError, Session

IN_THE_WAY = {"code": "no_capacity", "extra": {"held_up": True}}


class Refusing(Session, frozen=True, kw_only=True):
    """An API that has others in the way for the first `refusals` tries."""

    refusals: int = 3
    patience: float
    tries: list[str] = msgspec.field(default_factory=list)

    def call(self, method: str, path: str, **_more: Any) -> Any:
        if method == "GET":
            assert path == "/settings"
            return {"settings": {"held_up_seconds": self.patience, "held_up_retry_seconds": 0.01}}
        self.tries.append(path)
        if len(self.tries) <= self.refusals:
            raise CommandFailedError("no_capacity: in the way", problem=IN_THE_WAY)
        return {"replicas": ["r-1"]}


def test_who_waits_asks_again_until_there_is_room() -> None:
    session = Refusing(patience=60.0)
    assert placed(session, "m", {}, patient=True) == {"replicas": ["r-1"]}
    assert len(session.tries) == 4


@pytest.mark.parametrize(("patient", "patience"), [(False, 60.0), (True, 0.0)])
def test_who_does_not_wait_or_has_waited_long_enough_is_refused(*, patient: bool, patience: float) -> None:
    session = Refusing(patience=patience)
    with pytest.raises(CommandFailedError):
        placed(session, "m", {}, patient=patient)
    assert len(session.tries) == 1
