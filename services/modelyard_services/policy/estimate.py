"""How much memory a model will take by the look of its files (rule R4).

```
gguf          tensors + cache: context length x layers x (key + value) x 2 bytes
safetensors   tensors x 1.2: a header tells nothing of the cache
anything else file size x 1.2
```

Invariant: pure arithmetic on what headers say; the rule that gave a figure goes with it into the log. Files that
can't be looked at give no estimate, and no zero.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from modelyard_events.files import Metadata, ModelFile
from modelyard_events.sizes import SIZE_MAX
from modelyard_events.spec import CONTEXT_LENGTH_MAX, Estimate, EstimateRule, ModelSpec
from modelyard_services.policy.configuration import Configuration

CACHE_BYTES: Final = 2
"""Of one key or value: half precision, the usual server's default. A quantised cache is smaller."""

LAYERS_MAX: Final = 10_000
HEADS_MAX: Final = 100_000
"""Many times any model's: what is above was damaged or made up, and its product would be nonsense."""

ReadFiles = Callable[[Sequence[str]], Sequence[ModelFile]]
"""Looks at files; empty where one of them can't be looked at."""


def estimated(configuration: Configuration, read: ReadFiles) -> Configuration:
    """`configuration` with the estimates of its models."""
    models = {name: with_estimate(spec, read) for name, spec in configuration.models.items()}
    return msgspec.structs.replace(configuration, models=models)


def with_estimate(spec: ModelSpec, read: ReadFiles) -> ModelSpec:
    """`spec` with what its files come to, where they can be looked at from here."""
    files = read(spec.files) if spec.files else ()
    return msgspec.structs.replace(spec, estimate=estimate(files, context_length=spec.context_length))


def estimate(files: Sequence[ModelFile], *, context_length: int | None = None) -> Estimate | None:
    """What `files` come to, by the best rule that holds for all of them; None without any."""
    weights = sum(file.weights for file in files)
    if not 0 < weights <= SIZE_MAX // 2:
        return None
    # Of several parts the first has the header; a projector beside the model has one too, and no cache to speak of.
    caches = [_cache(file.metadata, context_length) for file in files if "general.architecture" in file.metadata]
    known = [found for found in caches if found is not None]
    if known:
        cache, length = max(known)
        return Estimate("gguf", weights, cache, length)
    rule: EstimateRule = "safetensors" if any(file.format == "safetensors" for file in files) else "file_size"
    return Estimate(rule, weights)


def _cache(metadata: Metadata, wanted: int | None) -> tuple[int, int] | None:
    """Bytes of the cache and the context length they are for; None where the header doesn't tell."""
    name = metadata["general.architecture"]
    length = wanted or _number(metadata, f"{name}.context_length", CONTEXT_LENGTH_MAX)
    layers = _number(metadata, f"{name}.block_count", LAYERS_MAX)
    heads = _heads(metadata, f"{name}.attention.head_count", layers or 0)
    if length is None or layers is None or heads is None:
        return None
    of_cache = _heads(metadata, f"{name}.attention.head_count_kv", layers) or heads
    embedding = _number(metadata, f"{name}.embedding_length", HEADS_MAX * HEADS_MAX) or 0
    size = embedding // max(heads) if max(heads) else 0
    key = _number(metadata, f"{name}.attention.key_length", HEADS_MAX) or size
    value = _number(metadata, f"{name}.attention.value_length", HEADS_MAX) or size
    cache = length * sum(of_cache) * (key + value) * CACHE_BYTES
    return (cache, length) if cache <= SIZE_MAX // 2 else None


def _number(metadata: Mapping[str, object], key: str, most: int) -> int | None:
    value = metadata.get(key)
    return value if isinstance(value, int) and 0 < value <= most else None


def _heads(metadata: Mapping[str, object], key: str, layers: int) -> tuple[int, ...] | None:
    """Heads by layer: one figure for all, or one each; a layer without attention has none."""
    value = metadata.get(key)
    if isinstance(value, int):
        value = (value,) * layers
    if not isinstance(value, tuple) or len(value) != layers:
        return None
    return value if all(isinstance(each, int) and 0 <= each <= HEADS_MAX for each in value) else None
