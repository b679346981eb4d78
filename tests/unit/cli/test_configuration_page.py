"""docs/configuration.md says what the program takes."""

from pathlib import Path

from modelyard_events.fleet import Settings
from tests.unit.cli import numbers
from tests.unit.cli.configuration_page import PAGE, PROCESSES, page, variables

ROOT = Path(__file__).parents[3]
WITH_NUMBERS = "N2 N3 N8 N9 N10 R2 R4 P1 P3 P4 T2 T3 T4 T5 T6 T7 C1 C4 C5 C6 C7 C8 W4 W5 W7 H2"


def test_the_page_is_what_the_program_says() -> None:
    """If it fails: `python -m tests.unit.cli.configuration_page`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_option_of_a_process_is_told_of() -> None:
    lines = page().splitlines()
    assert [line for line in lines if line.startswith("| `--") and line.endswith("|  |")] == []


def test_every_control_plane_process_reads_where_nats_is() -> None:
    assert [name for name in PROCESSES if name != "demo" and "MODELYARD_NATS_URL" not in variables(name)] == []


def test_every_rule_with_a_number_says_where_it_is_changed_or_why_it_can_not_be() -> None:
    """S1: a rule's numbers are defaults; every one is configuration."""
    told = {line.split(" | ")[0].removeprefix("| ") for line in numbers.section().splitlines() if line.startswith("| ")}
    assert set(WITH_NUMBERS.split()) - told == set()


def test_no_setting_is_without_effect() -> None:
    """S1: whoever decides reads it from the fleet."""
    sources = [path for folder in ("services", "projections") for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources if path.name != "known_settings.py")
    assert [name for name in Settings.__struct_fields__ if f".{name}" not in code and f'"{name}"' not in code] == []
