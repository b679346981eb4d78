"""Small model files, written by the formats' own descriptions: GGUF version 3 and safetensors.

Invariant: what is written is whole: the header, the alignment, and as many bytes of tensors as the header says.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

Value = int | float | bool | str | list[int] | list[str]

ALIGNMENT = 32
"""GGUF's default: tensors begin on a multiple of it."""


def write_gguf(path: Path, metadata: Mapping[str, Value], *, tensor_bytes: int = 0) -> Path:
    """A GGUF file with `metadata` and one tensor of bytes."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(metadata))
    header += b"".join(_text(key) + _typed(value) for key, value in metadata.items())
    header += _text("token_embd.weight") + struct.pack("<IQIQ", 1, tensor_bytes, 24, 0)  # one dimension, int8, first
    padding = -len(header) % ALIGNMENT
    path.write_bytes(header + bytes(padding + tensor_bytes))
    return path


def write_safetensors(path: Path, tensors: Mapping[str, int]) -> Path:
    """A safetensors file with tensors of so many bytes each."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))
    return path


def llama(*, layers: int = 4, heads: int = 8, kv_heads: int = 2, embedding: int = 256) -> dict[str, Value]:
    """The metadata of a small Llama, with a vocabulary such as real files have between the figures."""
    return {
        "general.architecture": "llama",
        "general.quantized_by": "us",
        "tokenizer.ggml.tokens": [f"token-{number}" for number in range(300)],
        "tokenizer.ggml.scores": list(range(300)),
        "llama.rope.freq_base": 10_000.0,
        "tokenizer.ggml.add_bos_token": True,
        "llama.context_length": 4_096,
        "llama.block_count": layers,
        "llama.embedding_length": embedding,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
    }


def _typed(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            kind = 8 if value and isinstance(value[0], str) else 5
            items = b"".join(_text(item) if isinstance(item, str) else struct.pack("<i", item) for item in value)
            return struct.pack("<IIQ", 9, kind, len(value)) + items


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
