"""Ids derive from the command: a decision decided again makes nothing twice (I11)."""

from modelyard_events.ids import CommandId
from modelyard_services.policy.identity import replica_id, reservation_id

C1, C2 = CommandId("c-1"), CommandId("c-2")


def test_the_same_command_names_the_same_replica_again() -> None:
    assert replica_id(C1, 0) == replica_id(C1, 0) == "r-2hoejiwhunshdzsy"


def test_position_command_and_kind_each_make_another_id() -> None:
    ids = {replica_id(C1, 0), replica_id(C1, 1), replica_id(C2, 0), reservation_id(C1, 0)}
    assert len(ids) == 4


def test_an_id_is_short_and_survives_every_subject() -> None:
    assert replica_id(C1, 0).removeprefix("r-").isalnum()
    assert reservation_id(C1, 0).startswith("v-")
    assert len(reservation_id(C1, 0)) == 18
