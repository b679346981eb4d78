"""Model files by their headers: what they come to, and that damaged ones give nothing rather than a guess (R4)."""

import json
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard_events.sizes import SIZE_MAX
from modelyard_events.spec import Estimate
from modelyard_services.effects.model_files import FilesUnreadableError, look_at, read_files
from modelyard_services.policy.estimate import CACHE_BYTES, estimate
from tests.support.model_files import llama, write_gguf, write_safetensors

KIB = 2**10


def came_to(*paths: Path, context_length: int | None = None) -> Estimate | None:
    return estimate(look_at([str(path) for path in paths]), context_length=context_length)


def test_a_gguf_file_gives_its_weights_and_the_cache_of_its_context(tmp_path: Path) -> None:
    """R4: 4 layers, 2 heads of 32 for keys and for values, half precision, 4,096 tokens."""
    file = write_gguf(tmp_path / "m.gguf", llama(), tensor_bytes=300 * KIB)
    cache = 4 * 4_096 * 2 * (32 + 32) * CACHE_BYTES
    found = came_to(file)
    assert found == Estimate("gguf", file.stat().st_size, cache, 4_096)
    assert found is not None
    assert found.size == file.stat().st_size + cache
    assert came_to(file, context_length=1_024) == Estimate("gguf", file.stat().st_size, cache // 4, 1_024)


@pytest.mark.parametrize(
    ("also", "heads_and_sizes"),
    [
        ({"llama.attention.key_length": 128, "llama.attention.value_length": 64}, 4 * 2 * (128 + 64)),
        ({"llama.attention.head_count_kv": [0, 2, 0, 4]}, (2 + 4) * (32 + 32)),
        ({"llama.attention.head_count_kv": 0}, 0),
    ],
    ids=["own sizes of key and value", "heads by layer", "no attention at all"],
)
def test_a_cache_is_as_its_layers_are(tmp_path: Path, also: dict[str, int | list[int]], heads_and_sizes: int) -> None:
    """R4."""
    found = came_to(write_gguf(tmp_path / "m.gguf", {**llama(), **also}, tensor_bytes=KIB))
    assert found is not None
    assert found.cache == 4_096 * heads_and_sizes * CACHE_BYTES


def test_without_its_own_heads_for_keys_a_model_has_as_many_as_for_queries(tmp_path: Path) -> None:
    """R4."""
    metadata = llama()
    del metadata["llama.attention.head_count_kv"]
    found = came_to(write_gguf(tmp_path / "m.gguf", metadata, tensor_bytes=KIB))
    assert found is not None
    assert found.cache == 4 * 4_096 * 8 * 64 * CACHE_BYTES


def test_all_parts_of_a_model_count_once_whichever_are_named(tmp_path: Path) -> None:
    """R4."""
    parts = [tmp_path / f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    write_gguf(parts[0], llama(), tensor_bytes=100)
    for part in parts[1:]:
        write_gguf(part, {"split.no": 1}, tensor_bytes=50 * KIB)
    whole = came_to(parts[0])
    assert whole is not None
    assert whole.weights == sum(part.stat().st_size for part in parts)
    assert came_to(parts[1]) == came_to(*parts) == came_to(tmp_path) == whole
    parts[2].unlink()
    with pytest.raises(FilesUnreadableError, match="00003-of-00003"):
        came_to(parts[0])


def test_safetensors_give_their_tensors_by_parts_and_by_index(tmp_path: Path) -> None:
    """R4: the header is no weight; a fifth on top, for it tells nothing of the cache."""
    one = write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"a": 300, "b": 200})
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"c": 500})
    index = tmp_path / "model.safetensors.index.json"
    names = {"a": one.name, "b": one.name, "c": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"metadata": {"total_size": 7}, "weight_map": names}))
    for named in ([one], [index], [tmp_path], [index, one]):
        found = came_to(*named)
        assert found == Estimate("safetensors", 1_000)
        assert found is not None
        assert found.size == 1_200


def test_anything_else_gives_its_size_and_a_fifth(tmp_path: Path) -> None:
    """R4."""
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(1_000))
    found = came_to(file)
    assert found == Estimate("file_size", 1_000)
    assert found is not None
    assert found.size == 1_200


def _huge(length: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", length)


def _broken_off() -> bytes:
    """A download that ended early: one tensor, and another that would begin a mebibyte later."""
    tensors = (struct.pack("<Q1sIQIQ", 1, name, 1, 2**20, 24, offset) for name, offset in ((b"a", 0), (b"b", 2**20)))
    return b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + b"".join(tensors) + bytes(1_000)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("m.gguf", b""),
        ("m.gguf", b"GGML" + bytes(60)),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 99, 0, 0)),
        ("m.gguf", _huge(2**63)),
        ("m.gguf", _huge(10) + b"short"),
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1) + bytes(100)),
        ("m.gguf", _huge(1) + b"k" + struct.pack("<IIQ", 9, 0, 2**62)),
        ("m.gguf", _huge(1) + b"k" + struct.pack("<IIQ", 9, 9, 1)),
        ("m.gguf", _huge(1) + b"k" + struct.pack("<I", 77)),
        ("m.gguf", _broken_off()),
        ("m.gguf", b"GGUF" + struct.pack("<IQQQQ", 3, 2**64 - 1, 0, 0, 2**62)),
        ("m.gguf", _huge(1) + b"\xff" + struct.pack("<IB", 0, 1)),
        ("m.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        ("m.safetensors", struct.pack("<Q", 2) + b"[]"),
        ("m.safetensors", struct.pack("<Q", 1) + b"{"),
        ("m.safetensors", struct.pack("<Q", 40_000) + b"[" * 40_000),
        ("m.safetensors", struct.pack("<Q", 34) + b'{"a": {"data_offsets": [0, 1000]}}'),
        ("m.safetensors", struct.pack("<Q", 34) + b'{"a": {"data_offsets": [0, -999]}}'),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "../../../../etc/passwd"}}'),
    ],
)
def test_a_damaged_or_hostile_file_gives_nothing_and_costs_nothing(tmp_path: Path, name: str, body: bytes) -> None:
    """R4: unknown, never zero; sizes that a header claims are not allocated."""
    (tmp_path / name).write_bytes(body)
    assert read_files([str(tmp_path / name)]) == []
    with pytest.raises(FilesUnreadableError):
        look_at([str(tmp_path / name)])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 400), flipped=st.integers(1, 255), cut=st.none() | st.integers(0, 400))
def test_a_file_with_any_byte_wrong_is_read_or_refused_and_stays_within_bounds(
    tmp_path: Path, position: int, flipped: int, cut: int | None
) -> None:
    """R4."""
    metadata = {key: value for key, value in llama().items() if "tokenizer" not in key}
    body = bytearray(write_gguf(tmp_path / "m.gguf", metadata, tensor_bytes=64).read_bytes())
    body[position % len(body)] ^= flipped
    (tmp_path / "m.gguf").write_bytes(body[:cut])
    found = estimate(read_files([str(tmp_path / "m.gguf")]))
    assert found is None or 0 < found.size <= SIZE_MAX


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to, a socket, a directory without weights, a relative name, nothing."""
    os.mkfifo(tmp_path / "pipe.gguf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.gguf"))
        (tmp_path / "empty").mkdir()
        for name in ("pipe.gguf", "socket.gguf", "empty", "missing.gguf"):
            assert read_files([str(tmp_path / name)]) == []
    assert read_files(["m.gguf"]) == []


def test_a_directory_of_several_models_is_not_taken_for_one(tmp_path: Path) -> None:
    for name in ("q4.gguf", "q8.gguf"):
        write_gguf(tmp_path / name, llama(), tensor_bytes=KIB)
    with pytest.raises(FilesUnreadableError, match="several models"):
        came_to(tmp_path)
