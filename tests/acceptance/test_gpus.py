"""Nodes with several GPUs: replicas on one or on several of them, with real processes that tell what they were given.

The driver is a stand-in (tests/support/driver), and what it says of memory follows from each process's environment.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml  # type: ignore[import-untyped]
import pytest

from tests.support.driver.cards import Cards, card
from tests.support.installation import Installation, until

GIB = 2**30
BACKEND = [sys.executable, str(Path(__file__).parents[1] / "support" / "driver" / "backend.py")]
BACKEND += ["--port", "{port}", "--model", "{model}", "--gpu", "{gpu}"]
NODE = "local-1"


class Yard(Installation):
    """One worker with two cards of 24 GiB."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "--workers", "1")
        self.cards = Cards(directory / "cards.json", card(0), card(1))
        self.variables = self.cards.variables()

    def define(self, model: str, gib: int, *, uses: int | None = None, **schedule: Any) -> None:
        """A model of `gib` GiB in all, whose process uses `uses` of each card it gets."""
        self.cards.use(model, (gib // schedule.get("gpus", 1) if uses is None else uses) * GIB)
        self.command("PUT", f"/models/{model}", {"command": BACKEND, "vram": f"{gib}GiB"})
        if schedule:
            self.command("PUT", f"/models/{model}/schedule", schedule)

    def capacity(self, model: str) -> Any:
        """What one more replica would come to, by what is measured and in use as far as the API has heard."""
        return self.get(f"/models/{model}/capacity")

    def load(self, model: str) -> list[int]:
        """The GPUs of a new replica."""
        before = {item["id"] for item in self.ready(model)}
        self.cli("load", model, "--wait")
        (new,) = (item for item in self.ready(model) if item["id"] not in before)
        gpus: list[int] = new["gpus"]
        return gpus

    def worker(self) -> subprocess.Popen[bytes]:
        """A second node on the same machine, whose replicas outlive it."""
        state = str(self.directory / "kept")
        return self.launch(
            *("worker", "--name", "kept", "--endpoints", str(self.data_dir / "endpoints.json")),
            *("--state-dir", state, "--at-end", "keep"),
            log="kept.log",
        )

    def adopted(self) -> list[Any]:
        found: list[Any] = self.get("/events?node=kept&type=replica.adopted")["items"]
        return found

    def gpus(self, node: str = NODE) -> list[dict[str, Any]]:
        answer = self.ask("GET", f"/nodes/{node}")
        return answer.json()["gpus"] if answer.is_success else []

    def indexes(self, node: str = NODE) -> list[int]:
        return [gpu["index"] for gpu in self.gpus(node)]

    def reserved(self, node: str = NODE) -> list[int]:
        """GiB reserved on each card."""
        return [gpu["vram_reserved"] // GIB for gpu in self.gpus(node)]

    def devices(self, model: str) -> dict[str, str | None]:
        """What the backend says that it was given, through the gateway."""
        answer = self.complete(model)
        assert answer.status_code == 200, answer.text
        found: dict[str, str | None] = json.loads(answer.json()["choices"][0]["text"])
        return found


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with Yard(tmp_path_factory.mktemp("gpus")) as yard:
        yard.cli("settings", "min_residency_seconds=0")
        yard.cli("node", "slots", NODE, "4")
        yield yard


@pytest.fixture(autouse=True)
def empty(yard: Yard) -> Iterator[None]:
    yield
    for model in yard.get("/models")["items"]:
        if model["defined"]:  # one that was removed is listed until its last replica has ended
            yard.cli("model", "rm", model["name"])
    until(lambda: not yard.get("/replicas")["items"], "nothing runs")
    assert yard.reserved() == [0, 0]


def test_the_node_tells_each_card_and_its_labels(yard: Yard) -> None:
    """N2, N6, W6."""
    node = yard.get(f"/nodes/{NODE}")
    assert [(gpu["index"], gpu["vendor"], gpu["vram_total"]) for gpu in node["gpus"]] == [
        (0, "nvidia", 24 * GIB),
        (1, "nvidia", 24 * GIB),
    ]
    assert (node["labels"]["gpu.vendor"]["value"], node["labels"]["gpu.vram"]["value"]) == ("nvidia", "24GB")
    shown = yard.cli("node", "show", NODE).out
    assert shown.count("nvidia NVIDIA L4, 24.0 GiB free") == 2


def test_spread_takes_another_card_and_binpack_the_same(yard: Yard) -> None:
    """P6: and each process sees its own card alone."""
    yard.define("apart", 8)
    assert sorted([yard.load("apart"), yard.load("apart")]) == [[0], [1]]
    assert yard.reserved() == [8, 8]
    yard.define("packed", 4, placement="binpack")
    assert [yard.load("packed"), yard.load("packed")] == [[0], [0]]
    assert yard.reserved() == [16, 8]
    seen = yard.devices("packed")
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["gpu"], seen["CUDA_DEVICE_ORDER"]) == ("0", "0", "PCI_BUS_ID")


def test_a_model_of_two_gpus_takes_both(yard: Yard) -> None:
    """P6, R3: its memory is reserved on each of them, and freed on each when it ends."""
    yard.define("wide", 20, gpus=2)
    assert yard.load("wide") == [0, 1]
    assert yard.reserved() == [10, 10]
    assert yard.devices("wide") == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HIP_VISIBLE_DEVICES": "0,1",
        "ROCR_VISIBLE_DEVICES": None,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "gpu": "0,1",
    }
    (placed,) = yard.get("/events?model=wide&type=replica.placed")["items"]
    assert placed["event"]["decision"]["figures"]["devices"] == "0,1"
    assert "0,1" in yard.cli("ps", "--model", "wide").out


def test_what_fits_on_no_single_card_is_refused_with_what_each_has_free(yard: Yard) -> None:
    """P5, P6: the node's sum would do."""
    yard.define("one", 16)
    yard.define("two", 18)
    assert (yard.load("one"), yard.load("two")) == ([0], [1])
    for model in ("one", "two"):
        yard.command("PUT", f"/models/{model}", {"command": BACKEND, "vram": "16GiB", "pinned": True})
    yard.define("third", 10)
    # A load is counted twice until a heartbeat shows what it took (R3).
    told = "GPUs of local-1 have 8.0, 6.0 GiB free"
    until(lambda: told in yard.capacity("third")["one_more"], "both loads are measured")
    refused = yard.cli("load", "third", code=1).err
    assert "1 vram (short by 2.0 GiB); GPUs of local-1 have 8.0, 6.0 GiB free; on local-1, one#0 is pinned" in refused
    assert "what would help: free 2.0 GiB of VRAM on one GPU of local-1, or unpin one" in refused


def test_making_room_frees_the_card_that_is_needed(yard: Yard) -> None:
    """P3: the model on the other card stays."""
    yard.define("first", 20)
    yard.define("second", 16)
    assert (yard.load("first"), yard.load("second")) == ([0], [1])
    assert yard.devices("first")["gpu"] == "0"
    yard.define("newcomer", 12)
    (second,) = yard.ready("second")
    until(lambda: yard.capacity("newcomer")["waits_for"] == [second["id"]], "use and loads are heard of")
    assert yard.load("newcomer") == [1]
    assert yard.reserved() == [20, 12]
    assert {item["model"] for item in yard.get("/replicas")["items"]} == {"first", "newcomer"}


def test_what_a_process_uses_of_each_card_is_what_it_holds(yard: Yard) -> None:
    """R3: the footprint measured on each card replaces the estimate."""
    yard.define("lean", 20, uses=7, gpus=2)
    assert yard.load("lean") == [0, 1]
    until(lambda: yard.reserved() == [7, 7], "both cards are resized", saying=yard.reserved)


def test_a_card_that_is_lost_is_capacity_no_more_and_takes_nothing_new(yard: Yard) -> None:
    """N8, N9, W6: until it answers again; a driver that says nothing costs nothing."""
    yard.cards.fail(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    yard.define("calm", 4, placement="binpack")
    assert yard.load("calm") == [0]
    assert yard.indexes() == [0, 1]
    yard.cards.reload()
    yard.cards.fail(pynvml.NVML_ERROR_GPU_IS_LOST, number=0)
    until(lambda: yard.indexes() == [1], "the card is no capacity any more")
    assert yard.load("calm") == [1]
    yard.cards.fail(None, number=0)
    until(lambda: yard.indexes() == [0, 1], "it is back")
    assert yard.reserved() == [4, 4]


def test_a_worker_that_is_killed_leaves_each_replica_its_devices(yard: Yard) -> None:
    """W4, W6: and it offers no card that its own environment hides from it."""
    yard.variables |= {"CUDA_VISIBLE_DEVICES": "GPU-00000001"}
    worker = yard.worker()
    try:
        until(lambda: yard.indexes("kept") == [1], "the worker has come")
        yard.define("stays", 6)
        yard.cli("load", "stays", "--node", "kept", "--wait")
        (before,) = yard.ready("stays")
        worker.kill()
        worker.wait()
        worker = yard.worker()
        until(lambda: len(yard.adopted()) == 1, "the next worker has taken it over")
        (after,) = yard.ready("stays")
        assert (after["id"], after["gpus"], after["vram"]) == (before["id"], [1], 6 * GIB)
        seen = yard.devices("stays")
        assert (seen["CUDA_VISIBLE_DEVICES"], seen["gpu"]) == ("1", "1")
        yard.cli("unload", "stays", "--wait")
        assert yard.reserved("kept") == [0]
    finally:
        worker.terminate()
        worker.wait()
        yard.variables.pop("CUDA_VISIBLE_DEVICES")
        yard.cli("node", "remove", "kept")
