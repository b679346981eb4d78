"""Every story in tests/scenarios holds, and its transcript is the one beside it.

A transcript that changed on purpose is written anew with `modelyard simulate STORY > STORY's .transcript`.
"""

import json
import re
from pathlib import Path

import pytest

from modelyard_services.cli.main import main
from modelyard_services.simulation.story import read_story, tell
from modelyard_services.simulation.verbs import VERBS
from modelyard_services.simulation.words import ScenarioError

SCENARIOS = Path(__file__).parents[2] / "scenarios"
DOCUMENT = Path(__file__).parents[3] / "docs" / "simulation.md"
STORIES = sorted(SCENARIOS.glob("*.scenario"))


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.stem)
def test_a_story_ends_as_it_expects_and_as_it_was_told_before(story: Path) -> None:
    """Rules and traps are named in the stories themselves."""
    transcript = tell(read_story(story.read_text(encoding="utf-8")))
    assert transcript.failures == 0, str(transcript)
    assert str(transcript) == story.with_suffix(".transcript").read_text(encoding="utf-8")


def test_every_story_has_a_transcript_and_every_transcript_a_story() -> None:
    assert {path.stem for path in STORIES} == {path.stem for path in SCENARIOS.glob("*.transcript")}


def test_an_expectation_that_fails_names_its_line_and_what_was_found() -> None:
    transcript = tell(read_story("node gpu-1\nworker gpu-1 joins\n\nexpect node gpu-1 lost\nexpect whisper ready"))
    told = [line.text for line in transcript.lines if line.failed]
    assert told == ["line 4: node gpu-1 is serving", "line 5: found no whisper"]


def test_a_story_that_expects_acceptance_fails_on_a_refusal() -> None:
    transcript = tell(read_story("load nobody\nexpect accepted"))
    assert transcript.failures == 1
    assert "model_unknown" in str(transcript)


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("\nfly gpu-1", ["story:2:1:", "one of expect, node", "'fly'"]),
        ("  node gpu-1 vram lots", ["story:1:19:", "a size such as 10GiB", "'lots'"]),
        ("after soon", ["story:1:7:", "a whole number", "'soon'"]),
        ("after 90000 s", ["story:1:7:", "at most 86400"]),
        ("after \u0663 s", ["story:1:7:", "a whole number"]),
        ("crash a  # and no node", ["story:1:8:", "expected on", "the end of the line"]),
        ("load a b", ["story:1:8:", "the end of the line", "'b'"]),
        ("label gpu-1 tier", ["story:1:13:", "key=value", "'tier'"]),
        ("schedule a on =", ["story:1:15:", "a selector such as tier=gpu"]),
        ("schedule a all min 2", ["either all, or min and max"]),
        ("schedule a min 1 min 2", ["story:1:18:", "each word once"]),
        ("model a concurrency 0", ["a number above 0"]),
        ("set speed 3", ["story:1:5:", "drain_deadline_seconds"]),
        ("answers a on gpu-1 loudly", ["healthy, silent, wrong", "'loudly'"]),
        ("expect 2 a flying", ["story:1:12:", "on", "'flying'"]),
        ("expect node gpu-1 happy", ["serving", "'happy'"]),
        ("settle now", ["the end of the line", "'now'"]),
        ("node \u2026\x00", ["a node's name"]),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_column_and_what_was_expected(
    text: str, saying: list[str]
) -> None:
    with pytest.raises(ScenarioError) as raised:
        read_story(text)
    assert not [part for part in saying if part not in str(raised.value)], str(raised.value)


def test_a_worker_whose_machine_was_never_described_cannot_join() -> None:
    with pytest.raises(ScenarioError, match="story:1:8: expected a node that a line above describes"):
        tell(read_story("worker gpu-9 joins"))


def test_a_request_waits_for_a_model_that_loads_and_is_answered_when_its_patience_ends() -> None:
    """T5."""
    story = (
        "node gpu-1\nworker gpu-1 joins\nmodel a vram 1GiB\n{how}request a\nafter 70 s\n"
        "expect {count} requests a on gpu-1"
    )
    served = tell(read_story(story.format(how="", count=1)))
    assert served.failures == 0, str(served)
    hanging = tell(read_story(story.format(how="loads a hang\n", count=0)))
    assert hanging.failures == 0
    assert "model_loading: not ready within 60 s" in str(hanging)


def test_a_remark_begins_before_a_word_and_not_within_one() -> None:
    story = "# all of it\nload nobody  # and this\nexpect refused model_unknown: no model is\nexpect refused a#0"
    told = [line.text for line in tell(read_story(story)).lines if line.failed]
    assert len(told) == 1
    assert told[0].startswith("line 4: the refusal says: model_unknown")


def test_a_bad_figure_is_refused_as_a_command_would_be() -> None:
    transcript = tell(read_story("node n\nworker n joins\nslots n 0\nexpect refused out of range"))
    assert transcript.failures == 0, str(transcript)


def test_a_request_that_finds_every_replica_silent_asks_for_another_one() -> None:
    """T4, X14: cold loading starts only when none is left, and never in the place of one that merely is busy."""
    transcript = tell(
        read_story(
            "node gpu-1\nnode gpu-2\nworker gpu-1 joins\nmodel a vram 1GiB\nload a\nsettle\n"
            "answers a on gpu-1 wrong\nworker gpu-2 joins\nrequest a\nsettle\nexpect 1 requests a on gpu-2"
        )
    )
    assert transcript.failures == 0, str(transcript)


def exit_code(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return exited.value.code


def test_the_command_prints_the_transcript_and_fails_with_an_expectation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = tmp_path / "one.scenario"
    story.write_text("node gpu-1\nworker gpu-1 joins\nexpect node gpu-1 serving\n", encoding="utf-8")
    assert exit_code(["simulate", str(story)]) == 0
    assert "node.approved" in capsys.readouterr().out
    story.write_text("node gpu-1\nexpect node gpu-1 serving\n", encoding="utf-8")
    assert exit_code(["--json", "simulate", str(story)]) == 1
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    assert [line["text"] for line in told if line.get("failed")] == ["line 2: node gpu-1 is gone"]
    assert "1 of its expectations failed" in err


def test_the_command_says_where_a_file_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = tmp_path / "one.scenario"
    story.write_text("node gpu-1\nworker gpu-1 dances\n", encoding="utf-8")
    assert exit_code(["simulate", str(story)]) == 1
    assert f"{story}:2:14: expected one of joins" in capsys.readouterr().err.replace("\n", "")
    story.write_bytes(b"\xff\xfe")
    assert exit_code(["simulate", str(story)]) == 1
    assert exit_code(["simulate", str(tmp_path / "none")]) == 1
    assert exit_code(["simulate"]) == 2


def test_the_document_tells_of_every_word_that_a_line_can_begin_with() -> None:
    told = set(re.findall(r"[a-z-]+", DOCUMENT.read_text(encoding="utf-8").partition("| line |")[2]))
    assert {"expect", *VERBS} - told == set()
