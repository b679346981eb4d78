"""What a type says of a value reaches whoever wrote it in words of his own."""

import re

import pytest

from modelyard_services.effects.documents import parse_text
from modelyard_services.errors import InvalidEntriesError
from modelyard_services.policy.configuration import Document, read_documents, read_model, read_schedule

CONVERTERS_WORDS = re.compile(r"`|expected|enum|\\bstr\\b|\\bint\\b|array|object")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"placement": "spraed"}, "placement: 'spraed' is none of spread, binpack"),
        ({"affinity": "x"}, "affinity: 'x' is none of none, session, prefix"),
        ({"gpus": 0}, "gpus: 0 is out of range; give 1 or more"),
        ({"gpus": 65}, "gpus: 65 is out of range; give 64 or less"),
        ({"idle_timeout_seconds": -1}, "idle_timeout_seconds: -1 is out of range; give more than 0"),
        ({"max_per_node": 1.5}, "max_per_node: 1.5 is not a whole number"),
        ({"min_replicas": "two"}, "min_replicas: 'two' is not a whole number"),
        ({"spread_all": "yes"}, "spread_all: 'yes' is not true or false"),
        ({"node_selector": [1]}, "node_selector: is not a text or a mapping"),
        ({"node_selector": "a=("}, "node_selector: 'a=(' is not a selector; write terms like tier=gpu"),
        ({"min_replicas": -1}, "min_replicas: -1 is negative"),
    ],
)
def test_a_fault_names_field_and_value_and_what_to_write(body: object, says: str) -> None:
    """S2."""
    with pytest.raises(InvalidEntriesError) as refused:
        read_schedule(body, name="entry")
    assert f"entry: {says}" in refused.value.detail
    assert not CONVERTERS_WORDS.search(refused.value.detail)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("command", "serve --fast", "command: 'serve --fast' is not a list"),
        ("files", [1], "files: is not a text (at [0])"),
        ("pinned", "yes", "pinned: 'yes' is not true or false"),
        ("vram", [1], "vram: is not a whole number or a text"),
        ("vram", "x" * 100, f"vram: '{'x' * 40}'… is not a size"),
        pytest.param("max_concurrency", 10**5000, "max_concurrency: ", id="5000 digits"),
    ],
)
def test_so_does_a_fault_of_a_model(field: str, value: object, says: str) -> None:
    """S2: a value too long to recognise anything by is cut or left out."""
    with pytest.raises(InvalidEntriesError) as refused:
        read_model({"command": ["serve"], field: value}, name="entry")
    assert f"entry: {says}" in refused.value.detail
    assert len(refused.value.detail) < 200


def test_faults_are_told_in_the_order_in_which_they_stand_each_on_its_line() -> None:
    """S2: whoever mends a file goes through it from the top."""
    texts = ("- {model_name: b, gpus: 0,\n   max_replicas: -1}\n- {model_name: c,\n   nope: 1}", "- {model_name: ''}")
    with pytest.raises(InvalidEntriesError) as refused:
        read_documents([Document(*parse_text(text, name=f"{n}", source="file")) for n, text in enumerate(texts)])
    told = refused.value.detail.splitlines()
    assert told[0] == "4 faults, nothing was applied:"
    assert [line.split()[0] for line in told[1:]] == ["0:1:", "0:2:", "0:4:", "1:1:"]
