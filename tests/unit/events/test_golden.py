"""What was published once is read for ever: every tag has a golden file, byte for byte.

A golden file is the body of a log message. Write a new tag's with
`python -c "from tests.unit.events.test_golden import write_missing; write_missing()"`; never change a released one.
Where a tag got an optional field, the body without it moves to `earlier/TAG.N.json` and is read for ever too.
`published.txt` lists the digests of all bodies: lines are added to it, never changed or taken away.
"""

import hashlib
from pathlib import Path

import pytest

from modelyard_events.codec import TAGS, decode, encode
from modelyard_events.envelope import AnyEvent, Recorded
from modelyard_events.upcasters import UPCASTERS
from tests.support.samples import EARLIER, ENVELOPE, RETIRED, SAMPLES

GOLDEN = Path(__file__).parents[2] / "golden"
PUBLISHED = GOLDEN / "published.txt"


def golden(tag: str) -> bytes:
    return (GOLDEN / f"{tag}.json").read_bytes().rstrip(b"\n")


def read(body: bytes) -> Recorded:
    return decode(body, sequence=1, time_ns=0, event_id="e")


def write_missing() -> None:
    """Write the golden files of tags that have none yet."""
    for tag, event in SAMPLES.items():
        path = GOLDEN / f"{tag}.json"
        if not path.exists():
            path.write_bytes(encode(event, ENVELOPE) + b"\n")
    known = PUBLISHED.read_text().split()
    PUBLISHED.write_text("".join(f"{digest}\n" for digest in [*known, *sorted(digests() - set(known))]))


def digests() -> set[str]:
    """The digest of every body there is; without names, for a body may move to `earlier`."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.rglob("*.json")}


def test_every_tag_ever_published_has_a_golden_file_and_every_file_a_tag() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == TAGS.keys() | UPCASTERS.keys()


def test_every_tag_has_a_sample() -> None:
    assert SAMPLES.keys() == TAGS.keys()
    assert RETIRED.keys() == UPCASTERS.keys()


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_a_golden_body_decodes_to_the_same_event_and_encodes_to_the_same_bytes(tag: str) -> None:
    recorded = read(golden(tag))
    assert recorded.event == SAMPLES[tag]
    assert recorded.envelope == ENVELOPE
    assert encode(recorded.event, recorded.envelope) == golden(tag)


@pytest.mark.parametrize("tag", sorted(RETIRED))
def test_a_retired_tag_still_decodes_to_what_it_meant(tag: str) -> None:
    expected: AnyEvent = RETIRED[tag]
    assert read(golden(tag)).event == expected
    assert read(golden(tag)).envelope == ENVELOPE


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_a_sample_sets_every_field_so_that_its_golden_file_holds_every_field(tag: str) -> None:
    event = SAMPLES[tag]
    fields = event.__struct_fields__
    assert all(f'"{field}":'.encode() in golden(tag) for field in fields)


def test_every_earlier_body_of_a_tag_has_its_meaning() -> None:
    assert {path.stem for path in GOLDEN.glob("earlier/*.json")} == EARLIER.keys()


@pytest.mark.parametrize("name", sorted(EARLIER))
def test_a_body_from_before_a_field_was_added_decodes_to_what_it_meant(name: str) -> None:
    """With the default for what its writer couldn't know."""
    assert read(golden(f"earlier/{name}")).event == EARLIER[name]
    assert read(golden(f"earlier/{name}")).envelope == ENVELOPE


def test_no_body_that_was_ever_published_was_changed_or_taken_away() -> None:
    """A rewritten file has another digest, and the old one's line stays without its file."""
    listed = PUBLISHED.read_text().split()
    assert set(listed) == digests()
    assert len(listed) == len(set(listed))
