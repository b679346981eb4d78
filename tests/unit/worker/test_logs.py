"""Lines as the keeper writes them and the worker reads them (rule W7)."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_events.ids import ReplicaId
from modelyard_services.worker.processes import keeper
from modelyard_services.worker.processes.keys import ProcessKey, process_key, reaches
from modelyard_services.worker.processes.logs import LogFile, stderr_tail

names = st.text(st.characters(exclude_characters="#", exclude_categories=["Z", "C"]), min_size=1)


def log_file(directory: Path) -> LogFile:
    return LogFile(directory, ReplicaId("r1"), ProcessKey("m#0"))


@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=60)))
def test_what_was_written_is_read_whatever_the_cuts_between_reads(lines: list[str]) -> None:
    stream = keeper.Stream(b"o")
    found = []
    data = "\n".join([*lines, ""]).encode()
    for start in range(0, len(data), 7):
        stream._rest += data[start : start + 7]
        found.extend(stream.take())
    assert [line.decode() for line in found] == lines
    assert stream.finish() == []


def test_a_line_without_end_is_cut_and_a_progress_bar_shows_its_last_state() -> None:
    assert [len(piece) for piece in keeper.pieces(b"x" * 10_000)] == [4096, 4096, 1808]
    assert list(keeper.pieces(b"10%\r50%\r100%\r")) == [b"100%"]
    assert list(keeper.pieces(b"")) == [b""]


def test_a_reader_goes_on_over_a_rotation_and_misses_nothing(tmp_path: Path) -> None:
    log = keeper.Log(tmp_path, 1_000)
    reader = log_file(tmp_path)
    seen: list[str] = []
    for batch in range(8):
        log.write(b"o", [f"{batch}:{number}".encode() + b"." * 4000 for number in range(300)])
        while lines := reader.new():
            seen.extend(line.text.rstrip(".") for line in lines)
    seen.extend(line.text.rstrip(".") for line in reader.new())
    reader.close()
    assert seen == [f"{batch}:{number}" for batch in range(8) for number in range(300)]
    assert (tmp_path / "log.1").exists()


def test_a_reader_that_is_two_rotations_behind_still_reads_all(tmp_path: Path) -> None:
    log = keeper.Log(tmp_path, 1_000)
    log.write(b"o", [b"-1"])
    reader = log_file(tmp_path)
    seen = [line.text for line in reader.new()]
    for number in range(3_000):
        log.write(b"o", [f"{number}".encode() + b"." * 4000])
    for _ in range(8):
        seen.extend(line.text.rstrip(".") for line in reader.new())
    reader.close()
    assert seen == [str(number) for number in range(-1, 3_000)]


def test_the_last_lines_reach_back_over_a_rotation(tmp_path: Path) -> None:
    log = keeper.Log(tmp_path, 1_000)
    for number in range(2_000):
        log.write(b"o", [f"{number}".encode() + b"." * 4000])
    reader = log_file(tmp_path)
    lines = reader.last(1_000)
    reader.close()
    assert [line.text.rstrip(".") for line in lines] == [str(number) for number in range(1_000, 2_000)]


@pytest.mark.parametrize("kept", [5, 100])
def test_as_many_of_the_last_lines_are_kept_as_is_asked_for_and_files_are_no_larger_than_that_takes(
    tmp_path: Path, kept: int
) -> None:
    """W7, S1: of the longest lines; what is beyond makes place."""
    log = keeper.Log(tmp_path, kept)
    for number in range(2_000):
        log.write(b"o", [f"{number}".encode() + b"." * 4_000])
    reader = log_file(tmp_path)
    lines = reader.last(kept)
    reader.close()
    assert [line.text.rstrip(".") for line in lines] == [str(number) for number in range(2_000 - kept, 2_000)]
    assert sum(path.stat().st_size for path in tmp_path.glob("log*")) <= 2 * (kept + 1) * keeper.LOG_BYTES_PER_LINE


def test_lines_that_a_full_disk_costs_are_counted_and_told(tmp_path: Path) -> None:
    log = keeper.Log(tmp_path, 1_000)
    real, log._file = log._file, -1  # every write fails
    log.write(b"o", [b"lost", b"lost too"])
    log._file = real
    log.write(b"o", [b"kept"])
    reader = log_file(tmp_path)
    assert [line.text for line in reader.last(10)] == ["modelyard: 2 log lines were lost: no space", "kept"]
    reader.close()


def test_stderr_is_told_apart(tmp_path: Path) -> None:
    """W5."""
    log = keeper.Log(tmp_path, 1_000)
    log.write(b"o", [b"out"])
    log.write(b"e", [b"error one", b"error two"])
    log.write(b"o", [b"much later"] * 2_000)
    assert stderr_tail(tmp_path, 20) == ("error one", "error two")


@given(model=names, index=st.integers(0, 899))
def test_a_bare_name_reaches_its_own_replicas_and_no_other_models(model: str, index: int) -> None:
    """W2, X3."""
    key = process_key(model, index)
    assert reaches(model, key)
    assert reaches(key, key)
    assert not reaches(process_key(model, index + 1), key)
    for other in (model + "x", "x" + model, model[:-1]):
        assert not reaches(other, key)


def test_a_key_is_exact_however_its_index_goes_on() -> None:
    """W2: `m#1` is not `m#10`."""
    assert reaches("m#1", process_key("m", 1))
    assert not reaches("m#1", process_key("m", 10))
