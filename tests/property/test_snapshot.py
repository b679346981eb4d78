"""A fleet written and read back is the same fleet, and folds on as it would have (I9)."""

import random

import pytest

from modelyard_projections.hashing import StateHash
from modelyard_projections.snapshot import decode_fleet, encode_fleet
from tests.support.histories import Historian

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fleet_read_back_is_the_same_and_folds_on_alike(seed: int) -> None:
    """I9, H3: at any batch end of a random history."""
    chance = random.Random(seed)  # noqa: S311 - a history, not a secret
    historian = Historian(chance.choice)
    for _ in range(60):
        historian.batch()
    historian.fleet.take_touched()
    copied = decode_fleet(encode_fleet(historian.fleet))
    assert copied == historian.fleet
    for _ in range(60):
        copied.apply_all(historian.batch())
        assert StateHash.of(copied).text == StateHash.of(historian.fleet).text
    assert copied == historian.fleet
