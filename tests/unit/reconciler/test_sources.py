"""Where a start's configuration comes from: each source known by name, the later wins, all faults at once (S1-S3)."""

import json
from pathlib import Path

import pytest

from modelyard_events.ids import ModelName
from modelyard_events.spec import Autoscale
from modelyard_services.errors import InvalidEntriesError
from modelyard_services.reconciler.sources import (
    FILE,
    INLINE,
    configuration_settings,
    options_of,
    read_configuration,
    variables_of,
)
from modelyard_services.settings import ConfigurationSettings


def entry(model: str, floor: int) -> dict[str, object]:
    return {"model_name": model, "min_replicas": floor}


def written(path: Path, *entries: dict[str, object]) -> Path:
    path.write_text(json.dumps(list(entries)))
    return path


def test_each_schedule_knows_its_source_and_the_later_source_wins(tmp_path: Path) -> None:
    """S1, S3: text, then its file, then the files; what stands twice is told."""
    inline = json.dumps([entry("text", 1), entry("both", 1), entry("all", 1)])
    file = written(tmp_path / "env.yaml", entry("both", 2), entry("all", 2), entry("path", 2))
    more = written(tmp_path / "more.yaml", entry("all", 3))
    environment = {INLINE: inline, FILE: str(file)}
    found = read_configuration(configuration_settings(inline, file, (more,), environment=environment))
    told = {name: (each.source, each.schedule.mode) for name, each in found.schedules.items()}
    assert told == {
        "text": ("env", Autoscale(1)),
        "both": ("env", Autoscale(2)),
        "path": ("env", Autoscale(2)),
        "all": ("file", Autoscale(3)),
    }
    assert len(found.warnings) == 3


def test_an_option_wins_over_its_variable_and_is_known_as_one() -> None:
    """S1, S3."""
    variable, option = json.dumps([entry("m", 1)]), json.dumps([entry("m", 2)])
    settings = configuration_settings(option, None, (), environment={INLINE: variable})
    (found,) = read_configuration(settings).schedules.values()
    assert (found.source, found.schedule.mode) == ("flag", Autoscale(2))


def test_the_faults_of_all_sources_are_told_together(tmp_path: Path) -> None:
    """S2: one start, one list to mend; nothing of the good ones is used."""
    torn, bad = tmp_path / "torn.yaml", tmp_path / "bad.yaml"
    torn.write_text("models: [")
    bad.write_text("- model_name: m\n  min_replicas: 3\n  max_replicas: 1\n")
    settings = configuration_settings("[{}]", tmp_path / "missing.yaml", (torn, bad), environment={})
    with pytest.raises(InvalidEntriesError) as refused:
        read_configuration(settings)
    told = [(Path(str(error["document"])).name, error["line"], error["field"]) for error in refused.value.errors]
    assert set(told) == {
        ("missing.yaml", None, "document"),
        ("torn.yaml", 1, "document"),
        ("--model-scheduling", 1, "model_name"),
        ("bad.yaml", 2, "min_replicas"),
    }


def test_what_up_hands_on_is_what_it_was_given(tmp_path: Path) -> None:
    """S3: a schedule's source doesn't change on its way from `up` to the reconciler."""
    file = written(tmp_path / "a.yaml", entry("file", 1))
    inline = json.dumps([entry("text", 1)])
    for environment in ({}, {INLINE: inline, FILE: str(file)}):
        given = configuration_settings(inline, file, (), environment=environment)
        options, handed = options_of(given), variables_of(given)
        value = dict(zip(options[::2], options[1::2], strict=True))
        again = configuration_settings(
            value.get("--model-scheduling", handed.get(INLINE)),
            Path(value.get("--model-scheduling-config", handed.get(FILE, ""))),
            (),
            environment=handed,
        )
        assert again == given
        assert bool(options) is not bool(handed)


def test_an_empty_variable_asks_for_nothing() -> None:
    assert configuration_settings("", None, (), environment={INLINE: ""}) == ConfigurationSettings()


def test_a_schedule_for_a_model_that_is_not_defined_is_kept(tmp_path: Path) -> None:
    """S1."""
    file = written(tmp_path / "a.yaml", entry("later", 1))
    found = read_configuration(configuration_settings(None, None, (file,), environment={}))
    assert list(found.schedules) == [ModelName("later")]
    assert found.models == {}
