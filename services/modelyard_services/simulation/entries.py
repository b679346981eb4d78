"""What operators write of a model: its definition and its schedule, each on one line.

Invariant: an entry means the same whether it is asked for by command or stands in a configuration file.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import ModelName
from modelyard_events.selectors import parse_selector
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, SpreadAll
from modelyard_services.simulation.words import Words

Read = Callable[[Words], object]


def read_model(words: Words) -> tuple[ModelName, ModelSpec]:
    """`whisper [vram 10GiB] [files 8GiB] [groups a,b] [concurrency 4] [command serve,--fast] [pinned]`."""
    name, fields = words.model(), _fields(words, _MODEL)
    return name, ModelSpec(**{"command": ("serve",), **fields})


def read_schedule(words: Words) -> tuple[ModelName, Schedule]:
    """`whisper [min 2] [max 4] [all] [per-node 1] [gpus 2] [binpack] [replace] [idle 60] [target 2] [on tier=gpu]`.

    `on` comes last: a selector may hold spaces.
    """
    name, fields = words.model(), _fields(words, _SCHEDULE)
    least, most, everywhere = fields.pop("least", 0), fields.pop("most", 0), fields.pop("everywhere", False)
    if everywhere and (least or most):
        raise words.wrong("either all, or min and max", "both")
    return name, Schedule(mode=SpreadAll() if everywhere else Autoscale(least, most), **fields)


def _selector(words: Words) -> object:
    text = words.rest()
    try:
        return parse_selector(text)
    except InvalidValueError as error:
        raise words.wrong("a selector such as tier=gpu", text) from error


def _positive(words: Words) -> int:
    count = words.count()
    if not count:
        raise words.wrong("a number above 0", "0")
    return count


_MODEL: Final[Mapping[str, tuple[str, Read]]] = {
    "vram": ("vram", Words.size),
    "files": ("file_size", Words.size),
    "groups": ("concurrency_groups", Words.names),
    "concurrency": ("max_concurrency", _positive),
    "command": ("command", Words.names),
    "pinned": ("pinned", lambda _words: True),
}

_SCHEDULE: Final[Mapping[str, tuple[str, Read]]] = {
    "min": ("least", Words.count),
    "max": ("most", Words.count),
    "all": ("everywhere", lambda _words: True),
    "per-node": ("max_per_node", _positive),
    "gpus": ("gpus", _positive),
    "binpack": ("placement", lambda _words: "binpack"),
    "replace": ("rollout", lambda _words: "replace"),
    "idle": ("idle_timeout_seconds", lambda words: float(_positive(words))),
    "target": ("target_in_flight", lambda words: float(_positive(words))),
    "on": ("node_selector", _selector),
}


def _fields(words: Words, known: Mapping[str, tuple[str, Read]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    while words.left:
        field, read = known[words.one_of(*known)]
        if field in fields:
            raise words.wrong("each word once", field)
        fields[field] = read(words)
    return fields
