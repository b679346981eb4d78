"""Several workers of one machine: what there is, is divided, and nothing is offered twice (rule W6).

The GPU driver is a stand-in (tests/support/driver); RAM is this machine's own.
"""

from pathlib import Path
from typing import Any

import pynvml  # type: ignore[import-untyped]
import pytest

from modelyard_services.worker.machine import ram_total
from tests.support.driver.cards import Cards, card
from tests.support.installation import Installation, until

CARDS = 4
CHOSEN = "0,1,3"
WORKERS = ("local-1", "local-2")


class Machine(Installation):
    """Four cards, of which two workers get three."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "--workers", str(len(WORKERS)), "--gpus", CHOSEN)
        self.cards = Cards(directory / "cards.json", *(card(number) for number in range(CARDS)))
        self.variables = self.cards.variables()

    def node(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/nodes/{name}")
        return found

    def indexes(self, name: str) -> list[int]:
        return [gpu["index"] for gpu in self.node(name)["gpus"]]


def test_workers_of_one_machine_share_nothing_twice(tmp_path: Path) -> None:
    """W6: each card is one worker's, those that weren't chosen are nobody's, and RAM adds up to what there is."""
    with Machine(tmp_path) as machine:
        assert [machine.indexes(name) for name in WORKERS] == [[0, 3], [1]]
        nodes = [machine.node(name) for name in WORKERS]
        assert sum(node["ram_total"] for node in nodes) == pytest.approx(ram_total(), abs=len(WORKERS))
        assert len({node["ram_total"] for node in nodes}) == 1
        machine.cards.fail(pynvml.NVML_ERROR_GPU_IS_LOST, number=0)
        until(lambda: machine.indexes("local-1") == [3], "a lost card is no capacity any more")
        assert machine.indexes("local-2") == [1]
