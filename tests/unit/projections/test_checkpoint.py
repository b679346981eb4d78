"""A checkpoint is continued by its own log only, and only from within it."""

import pytest

from modelyard_projections.checkpoint import AnotherLogError, Checkpoint, PastTheEndError, check

AT_7 = Checkpoint("log-1", 7, "0" * 32)


@pytest.mark.parametrize("last", [7, 8, 1_000])
def test_a_log_that_holds_the_checkpoint_continues_it(last: int) -> None:
    check(AT_7, log_id="log-1", last_sequence=last)


def test_another_log_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(AnotherLogError, match="from log log-1, this is log log-2: point the projector at the log"):
        check(AT_7, log_id="log-2", last_sequence=100)


def test_a_log_that_ends_before_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(PastTheEndError, match=r"stands at sequence 7, the log ends at 6: .* restore it"):
        check(AT_7, log_id="log-1", last_sequence=6)
