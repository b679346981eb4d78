"""From a launch spec to an order: placeholders, allow-list, devices, environment (rule W3)."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_events.spec import LaunchSpec, SecretRef
from modelyard_services.worker.processes.launch import (
    SECRET_BYTES_MAX,
    LaunchRefusedError,
    Order,
    Placeholders,
    is_allowed,
    order_of,
)

FILLED = Placeholders(port=20001, host="127.0.0.1", model="org/llama", replica="r1", devices=("1", "3"))
PATH = {"PATH": "/usr/bin:/bin"}


def order(launch: LaunchSpec, *, inherited: dict[str, str] | None = None, allowed: tuple[str, ...] = ()) -> Order:
    return order_of(launch, FILLED, inherited=PATH | (inherited or {}), allowed=allowed, dies_with=None)


def test_placeholders_are_filled_in_command_and_environment_and_other_braces_stay() -> None:
    launch = LaunchSpec(
        command=("true", "{host}:{port}", '{"model": "{model}"}', "{unknown}"), environment={"X": "{gpu}/{replica}"}
    )
    made = order(launch)
    assert made.command == ["true", "127.0.0.1:20001", '{"model": "org/llama"}', "{unknown}"]
    assert made.environment["X"] == "1,3/r1"


def test_a_name_behind_a_backslash_is_text() -> None:
    """W3."""
    fill = FILLED.fill
    assert fill(r"\{port} {port} \{other} \{ \d{2}") == r"{port} 20001 {other} \{ \d{2}"


@given(model=st.text())
def test_a_name_that_looks_like_a_placeholder_is_not_filled_again(model: str) -> None:
    filled = Placeholders(port=1, host="{port}", model=model, replica="{gpu}", devices=())
    assert filled.fill("{model}|{host}|{replica}") == f"{model}|{{port}}|{{gpu}}"


def test_a_secret_is_what_its_file_holds_and_no_file_that_holds_something_else(tmp_path: Path) -> None:
    """W3: the line end that editors leave is none of it; weights that were named by mistake are refused unread."""
    file = tmp_path / "secret"
    launch = LaunchSpec(command=("true",), environment={"KEY": SecretRef(from_file=str(file))})
    file.write_bytes(b" hunter2 \r\n")
    assert order(launch).environment["KEY"] == " hunter2 "
    for content in (b"x" * (SECRET_BYTES_MAX + 1), b"GGUF\0\3"):
        file.write_bytes(content)
        with pytest.raises(LaunchRefusedError, match=r"'KEY': .* is too large or not text"):
            order(launch)


def test_a_process_sees_the_gpus_it_was_placed_on_and_no_other() -> None:
    """R3: memory was reserved on these, counted as NVML counts."""
    environment = order(LaunchSpec(command=("true",))).environment
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["HIP_VISIBLE_DEVICES"] == "1,3"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_what_hides_gpus_from_the_worker_renumbers_none_for_a_process() -> None:
    """W3, W6: HIP counts within what ROCr leaves it, and our own figures are the machine's."""
    hidden = {"CUDA_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "2,3", "GPU_DEVICE_ORDINAL": "0"}
    environment = order(LaunchSpec(command=("true",)), inherited=hidden).environment
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["HIP_VISIBLE_DEVICES"]) == ("1,3", "1,3")
    assert not environment.keys() & {"ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"}


def test_a_spec_may_choose_its_devices_itself() -> None:
    launch = LaunchSpec(command=("true",), environment={"CUDA_VISIBLE_DEVICES": "GPU-8f2c"})
    assert order(launch).environment["CUDA_VISIBLE_DEVICES"] == "GPU-8f2c"


def test_the_workers_own_credentials_reach_no_backend() -> None:
    made = order(LaunchSpec(command=("true",)), inherited={"MODELYARD_TOKEN": "secret", "HOME": "/root"})
    assert "MODELYARD_TOKEN" not in made.environment
    assert made.environment["HOME"] == "/root"


@pytest.mark.parametrize(
    ("command", "executable", "pattern", "allowed"),
    [
        (["llama-server", "-m", "x"], "/usr/bin/llama-server", "llama-server", True),
        (["llama-server"], "/usr/bin/llama-server", "llama-*", True),
        (["./llama-server"], "/tmp/llama-server", "llama-server", False),  # noqa: S108 - a path, not a file
        (["/tmp/llama-server"], "/tmp/llama-server", "llama-server", False),  # noqa: S108
        (["/opt/llama/bin/llama-server"], "/opt/llama/bin/llama-server", "/opt/llama/*", True),
        (["llama-server"], "/opt/llama/bin/llama-server", "/opt/llama/*", True),
        (["python", "-m", "vllm.entrypoints", "--x"], "/usr/bin/python", "python -m vllm.*", True),
        (["python", "-m", "http.server"], "/usr/bin/python", "python -m vllm.*", False),
        (["sh", "-c", "python -m vllm.x"], "/bin/sh", "python -m vllm.*", False),
        (["python -m vllm.x", "evil"], "/bin/python -m vllm.x", "python -m vllm.*", False),
    ],
)
def test_an_allowed_command_is_the_one_that_was_meant(
    *, command: list[str], executable: str, pattern: str, allowed: bool
) -> None:
    assert is_allowed(command, executable, (pattern,)) is allowed


@pytest.mark.parametrize("what", ["file", "device"])
def test_what_a_spec_needs_must_be_on_the_node(what: str, tmp_path: Path) -> None:
    """W3: said before anything is started, with the name."""
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.touch()
    needs = {
        "file": LaunchSpec(command=("true",), files=(str(there),)),
        "device": LaunchSpec(command=("true",), devices=(str(there),)),
    }
    lacks = {
        "file": LaunchSpec(command=("true",), files=(str(missing),)),
        "device": LaunchSpec(command=("true",), devices=(str(missing),)),
    }
    assert order(needs[what]).command == ["true"]
    with pytest.raises(LaunchRefusedError, match=f"the {what} .*missing' isn't on this node"):
        order(lacks[what])


def test_an_allowed_command_is_looked_up_on_the_workers_own_path() -> None:
    """Else a spec could bring its own `true`."""
    with pytest.raises(LaunchRefusedError, match="'PATH'"):
        order(LaunchSpec(command=("true",), environment={"PATH": "/evil"}), allowed=("true",))
    with pytest.raises(LaunchRefusedError, match="'LD_PRELOAD'"):
        order(LaunchSpec(command=("true",), environment={"LD_PRELOAD": "/evil.so"}), allowed=("true",))
    assert order(LaunchSpec(command=("true",)), allowed=("true",)).executable == shutil.which("true", path=PATH["PATH"])
