"""Files on a disk that hangs: their model is of unknown size, and nobody waits (R4, X20)."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from modelyard_events.files import ModelFile
from modelyard_events.ids import CommandId, ModelName
from modelyard_events.replica import ReplicaPlaced
from modelyard_events.spec import ModelSpec
from modelyard_services.effects.looks import LOOKS_MAX, looked
from modelyard_services.policy.estimate import with_estimate
from modelyard_services.policy.models import define
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import Readings
from tests.support.given import a_model, a_ready_replica, an_approved_node, given, record
from tests.support.model_files import llama, write_gguf

SPEC = ModelSpec(command=("serve",), files=("/mnt/away/m.gguf",))
SOON = 0.05


class HungDisk:
    """Answers nobody until it is released."""

    def __init__(self) -> None:
        self._back = threading.Event()
        self.asked = 0

    def read(self, _names: Sequence[str]) -> Sequence[ModelFile]:
        self.asked += 1
        self._back.wait()
        return [ModelFile("other", weights=1)]

    def release(self) -> None:
        self._back.set()


@pytest.fixture
def disk() -> Iterator[HungDisk]:
    hung = HungDisk()
    yield hung
    hung.release()


async def test_what_is_looked_at_in_time_is_told(tmp_path: Path) -> None:
    """R4."""
    file = write_gguf(tmp_path / "m.gguf", llama(), tensor_bytes=1_024)
    spec = ModelSpec(command=("serve",), files=(str(file),))
    assert (await looked(partial(with_estimate, spec))).estimate is not None


async def test_a_problem_of_the_work_is_the_callers(disk: HungDisk) -> None:
    disk.release()
    with pytest.raises(ZeroDivisionError):
        await looked(lambda read: len(read([])) // 0, read=disk.read)


async def test_a_model_whose_files_hang_is_of_unknown_size_and_never_weighs_nothing(disk: HungDisk) -> None:
    """R4, X20: it goes to a node without others only, and what the disk says later changes nothing any more."""
    spec = await looked(partial(with_estimate, SPEC), read=disk.read, seconds=SOON)
    assert spec.estimate is None
    disk.release()
    await asyncio.sleep(0)
    assert spec.estimate is None
    m = ModelName("m")
    request = Request(model=m, command=CommandId("c"), now_ns=0)
    taken = given(*an_approved_node(slots=2), *a_model("other"), *a_ready_replica(model="other")).fleet
    empty = given(*an_approved_node()).fleet
    for fleet, placed in ((taken, 0), (empty, 1)):
        record(fleet, *define(fleet, model=m, spec=spec))
        events = place(fleet, Readings(), request).events
        assert sum(isinstance(event, ReplicaPlaced) for event in events) == placed


async def test_looks_that_hang_take_a_few_threads_and_no_more(disk: HungDisk) -> None:
    """The loop's own threads stay everybody else's, and a look after them waits no longer than any other."""
    looks = [looked(partial(with_estimate, SPEC), read=disk.read, seconds=0.5) for _ in range(LOOKS_MAX + 4)]
    found = asyncio.gather(*looks)
    await asyncio.to_thread(lambda: None)
    assert [spec.estimate for spec in await found] == [None] * (LOOKS_MAX + 4)
    assert disk.asked == LOOKS_MAX
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "look at model files")
    disk.release()
    assert (await looked(partial(with_estimate, SPEC), read=disk.read, seconds=5)).estimate is not None
