"""How a process is called: `<model>#<replica index>` (rule W2).

Invariant: a key with `#` means one process; a bare model name means every replica of the model, so that
nothing asked for by name is ever missed (trap X3).
"""

from typing import NewType

ProcessKey = NewType("ProcessKey", str)


def process_key(model: str, replica_index: int) -> ProcessKey:
    return ProcessKey(f"{model}#{replica_index}")


def reaches(asked: str, key: ProcessKey) -> bool:
    """Whether `asked`, a key or a bare model name (which holds no `#`), means the process `key`."""
    return asked == key if "#" in asked else key.startswith(f"{asked}#")
