"""docs/configuration.md says what the program takes."""

from tests.unit.cli.configuration_page import PAGE, PROCESSES, page, variables


def test_the_page_is_what_the_program_says() -> None:
    """If it fails: `python -m tests.unit.cli.configuration_page`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_option_of_a_process_is_told_of() -> None:
    lines = page().splitlines()
    assert [line for line in lines if line.startswith("| `--") and line.endswith("|  |")] == []


def test_every_control_plane_process_reads_where_nats_is() -> None:
    assert [name for name in PROCESSES if name != "demo" and "MODELYARD_NATS_URL" not in variables(name)] == []
