"""What a look at a model's files gives: their sizes, and what their headers tell (rule R4).

Invariant: figures only; nothing here was read further than a header.
"""

from typing import Literal

import msgspec

FileFormat = Literal["gguf", "safetensors", "other"]
Metadata = dict[str, int | str | tuple[int, ...]]


class ModelFile(msgspec.Struct, frozen=True):
    """One file. `weights` are the bytes of its tensors, the file's size where no header tells."""

    format: FileFormat
    weights: int
    metadata: Metadata = {}
