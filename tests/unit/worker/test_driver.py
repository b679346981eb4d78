"""The stand-in driver against the module that binds the real one, as far as that answers without a GPU (rule W6).

What can't be asked here is what a card answers; names, parameters, error classes and the fields of answers can.
"""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pynvml  # type: ignore[import-untyped]
import pytest

from modelyard_services.worker import gpus
from tests.support.driver import pynvml as driver
from tests.support.driver.cards import GIB, Cards, card

PART = {"name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "uuid": "MIG-a", "total": 40 * GIB}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """A card of one piece and one in a part, with the driver begun."""
    cards = Cards(tmp_path / "cards.json", card(0), card(1, mig=[PART]))
    monkeypatch.setenv(driver.VARIABLE, cards.variables()[driver.VARIABLE])
    monkeypatch.setattr(driver, "_begun", [])
    driver.nvmlInit()
    return cards


def asked_for() -> set[str]:
    """Every name that the worker takes from NVML's module."""
    tree = ast.parse(inspect.getsource(gpus))
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (ast.unparse(node.value) in {"nvml", "self._nvml"} and node.attr.lower().startswith("nvml"))
    }
    assert len(found) >= len(calls(driver)), found
    return found


def calls(module: ModuleType) -> dict[str, Callable[..., object]]:
    return {name: call for name, call in vars(module).items() if name.startswith("nvml") and inspect.isfunction(call)}


def test_what_the_worker_asks_for_is_there_in_the_real_module_and_in_its_stand_in() -> None:
    """W6: a name that only the stand-in had would be found missing by the first machine with a GPU."""
    for module in (pynvml, driver):
        assert [name for name in asked_for() if not hasattr(module, name)] == []
    assert calls(driver).keys() <= asked_for()


@pytest.mark.parametrize("name", sorted(calls(driver)))
def test_a_call_takes_as_many_arguments_as_the_real_one_needs(name: str) -> None:
    assert needed(calls(driver)[name]) == needed(getattr(pynvml, name))


def needed(call: Callable[..., object]) -> int:
    parameters = inspect.signature(call).parameters.values()
    return sum(parameter.default is inspect.Parameter.empty for parameter in parameters)


def test_errors_are_of_the_classes_that_the_real_module_raises() -> None:
    """By code, as the library answers: each code has a class of its own, beside the one for all."""
    for name in asked_for():
        if name.startswith("NVMLError_"):
            code = getattr(driver, name)().value
            assert type(pynvml.NVMLError(code)) is getattr(pynvml, name)
            assert type(driver.NVMLError(code)) is getattr(driver, name)
            assert issubclass(getattr(driver, name), driver.NVMLError)


def test_nothing_is_answered_before_the_beginning_and_after_the_end(begun: Cards) -> None:
    """The real module too says so, with a driver and without: what was begun twice ends twice."""
    driver.nvmlInit()
    driver.nvmlShutdown()
    assert driver.nvmlDeviceGetCount() == 2
    driver.nvmlShutdown()
    for module in (pynvml, driver):
        with pytest.raises(module.NVMLError) as refused:
            module.nvmlDeviceGetCount()
        assert refused.value.value == pynvml.NVML_ERROR_UNINITIALIZED
    begun.reload()
    driver.nvmlInit()
    assert driver.nvmlDeviceGetCount() == 2


def test_answers_have_the_fields_of_the_real_ones(begun: Cards) -> None:
    """Bytes each; a card of one piece has no instances, and says so by the largest number."""
    begun.use("m", GIB)
    whole = driver.nvmlDeviceGetHandleByIndex(0)
    assert vars(driver.nvmlDeviceGetMemoryInfo(whole)).keys() == fields_of(pynvml.c_nvmlMemory_t)
    fields = fields_of(pynvml.c_nvmlProcessInfo_v3_t)
    assert all(vars(process).keys() == fields for process in driver.nvmlDeviceGetComputeRunningProcesses(whole))
    assert {"pid", "usedGpuMemory"} <= fields
    assert driver.NVML_DEVICE_MIG_ENABLE == pynvml.NVML_DEVICE_MIG_ENABLE == 1


def fields_of(structure: type) -> set[str]:
    return {name for name, *_ in structure._fields_}  # type: ignore[attr-defined]


def test_what_isnt_there_is_an_invalid_argument_and_a_part_that_isnt_made_is_not_found(begun: Cards) -> None:
    """As NVML's manual has it of each call."""
    begun.fail(None)
    with pytest.raises(driver.NVMLError) as refused:
        driver.nvmlDeviceGetHandleByIndex(2)
    assert refused.value.value == pynvml.NVML_ERROR_INVALID_ARGUMENT
    whole, divided = map(driver.nvmlDeviceGetHandleByIndex, (0, 1))
    with pytest.raises(driver.NVMLError_NotSupported):
        driver.nvmlDeviceGetMigMode(whole)
    assert driver.nvmlDeviceGetMigMode(divided) == [1, 1]
    assert driver.nvmlDeviceGetUUID(driver.nvmlDeviceGetMigDeviceHandleByIndex(divided, 0)) == "MIG-a"
    with pytest.raises(driver.NVMLError_NotFound):
        driver.nvmlDeviceGetMigDeviceHandleByIndex(divided, 1)
    with pytest.raises(driver.NVMLError) as refused:
        driver.nvmlDeviceGetMigDeviceHandleByIndex(divided, driver.PARTS_MAX)
    assert refused.value.value == pynvml.NVML_ERROR_INVALID_ARGUMENT
