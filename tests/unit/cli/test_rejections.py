"""What `modelyard model capacity` says of a node that takes no more: words, never a filter's bare figure."""

import pytest

from modelyard_services.cli.rejections import worded
from modelyard_services.policy.filters import FILTERS


@pytest.mark.parametrize(
    ("name", "figure", "unit", "detail", "says"),
    [
        (None, None, None, None, "-"),
        ("slot", 1, None, None, "slot: 1 of the model already, as many as the node takes (`modelyard node slots`)"),
        (
            "max_per_node",
            2,
            None,
            None,
            "max_per_node: 2 of the model already, as many as its schedule allows on one node",
        ),
        ("loaded_limit", 3, None, None, "loaded_limit: 3 other models loaded already, as many as the node may hold"),
        ("vram", 2**30, "bytes", "1 GiB free", "vram: short by 1.0 GiB; 1 GiB free"),
        ("backoff", 6.2, "seconds", None, "backoff: failed to load there, tried again in 6.2 s"),
        ("alive", None, None, "lost", "alive: lost"),
        ("gpus", 2, "GPUs", None, "gpus: short by 2 GPUs"),
    ],
)
def test_a_rejection_is_told_in_words(
    name: str | None, figure: float | None, unit: str | None, detail: str | None, says: str
) -> None:
    """P6."""
    assert worded({"filter": name, "figure": figure, "unit": unit, "detail": detail}) == says


def test_no_filter_is_told_by_a_bare_figure() -> None:
    """P6: nor is a later one that has a figure and no word of its own."""
    for name in FILTERS:
        told = worded({"filter": name, "figure": 7, "unit": None, "detail": None})
        assert not told.endswith(f"{name} 7"), told
        assert len(told.split()) > 2, told
