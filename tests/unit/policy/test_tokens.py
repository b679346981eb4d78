"""Tokens: created, rotated, revoked, known by digest only (rule N4)."""

from typing import Any, cast

import pytest

from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import (
    FleetRegistrationTokenCreated,
    FleetRegistrationTokenRevoked,
    FleetTokenCreated,
    FleetTokenRevoked,
    Role,
)
from modelyard_projections.fleet import evolve_fleet
from modelyard_services.errors import ConflictError, NotFoundError, OverloadedError
from modelyard_services.policy import tokens
from modelyard_services.policy.tokens import digest_of
from tests.support.given import Decide, given

FIRST, SECOND = digest_of("first secret"), digest_of("second secret")
CREATED = FleetTokenCreated(name="ci", role="operator", digest=FIRST)
ROOT = FleetTokenCreated(name="root", role="admin", digest=digest_of("root secret"))
JOIN = FleetRegistrationTokenCreated(name="rack-1", digest=FIRST)


def creating(name: str = "ci", digest: str = FIRST) -> Decide:
    return lambda fleet: tokens.create_token(fleet, name=name, role="operator", digest=digest)


def test_a_token_is_created_once_by_its_digest() -> None:
    history = given(ROOT)
    history.when(creating()).then(CREATED)
    history.when(creating()).then_nothing()


def test_a_name_that_is_taken_by_another_token_is_refused() -> None:
    given(CREATED).when(creating(digest=SECOND)).then_raises(ConflictError, "'ci'")


def test_a_revoked_token_is_worth_nothing() -> None:
    history = given(CREATED)
    known = tokens.token_of(history.fleet, "first secret")
    assert known is not None
    assert (known.name, known.role) == ("ci", "operator")
    history.when(lambda fleet: tokens.revoke_token(fleet, name="ci")).then(FleetTokenRevoked(name="ci"))
    assert tokens.token_of(history.fleet, "first secret") is None


def test_a_rotated_token_keeps_its_role() -> None:
    """N4."""
    history = given(CREATED)
    history.when(lambda fleet: tokens.rotate_token(fleet, name="ci", digest=SECOND)).then(
        FleetTokenRevoked(name="ci"), FleetTokenCreated(name="ci", role="operator", digest=SECOND)
    )
    assert tokens.token_of(history.fleet, "first secret") is None
    assert history.fleet.revoked_tokens.keys() == {FIRST}


def test_what_is_remembered_of_revoked_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolve_fleet, "REVOKED_MAX", 1)
    history = given(CREATED, FleetTokenRevoked(name="ci"), JOIN, FleetRegistrationTokenRevoked(name="rack-1"))
    assert [gone.name for gone in history.fleet.revoked_tokens.values()] == ["rack-1"]


def test_revoking_an_unknown_token_says_so() -> None:
    """X28."""
    given().when(lambda fleet: tokens.revoke_token(fleet, name="ci")).then_raises(NotFoundError, "'ci'")
    given().when(lambda fleet: tokens.revoke_registration_token(fleet, name="x")).then_raises(NotFoundError, "'x'")
    given().when(lambda fleet: tokens.rotate_registration_token(fleet, name="x", digest=FIRST)).then_raises(
        NotFoundError, "'x'"
    )


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_the_first_token_is_an_admin_s_for_nobody_could_make_another(role: Role) -> None:
    """N4: `modelyard token create bob` on an open installation shut it to everybody."""
    given().when(lambda fleet: tokens.create_token(fleet, name="bob", role=role, digest=FIRST)).then_raises(
        ConflictError, "role admin first"
    )
    given(ROOT).when(lambda fleet: tokens.create_token(fleet, name="bob", role=role, digest=FIRST)).then(
        FleetTokenCreated(name="bob", role=role, digest=FIRST)
    )


def test_the_last_admin_s_token_goes_last() -> None:
    """N4."""
    revoke: Decide = lambda fleet: tokens.revoke_token(fleet, name="root")  # noqa: E731 - used thrice
    given(ROOT, CREATED).when(revoke).then_raises(ConflictError, "last token of an admin")
    given(ROOT).when(revoke).then(FleetTokenRevoked(name="root"))
    other = FleetTokenCreated(name="other", role="admin", digest=digest_of("other"))
    given(ROOT, CREATED, other).when(revoke).then(FleetTokenRevoked(name="root"))


def test_a_secret_is_never_taken_for_a_digest() -> None:
    given(ROOT).when(creating(digest="first secret")).then_raises(InvalidValueError, "SHA-256")


def test_another_secret_finds_no_token() -> None:
    history = given(CREATED, FleetTokenCreated(name="ops", role="admin", digest=SECOND))
    found = tokens.token_of(history.fleet, "second secret")
    assert found is not None
    assert found.name == "ops"
    assert tokens.token_of(history.fleet, FIRST) is None
    assert tokens.token_of(history.fleet, "") is None


def test_registration_tokens_are_created_and_revoked() -> None:
    """N4."""
    history = given()
    creation: Decide = lambda fleet: tokens.create_registration_token(  # noqa: E731 - used twice
        fleet, name="rack-1", digest=FIRST
    )
    history.when(creation).then(JOIN)
    history.when(creation).then_nothing()
    history.when(lambda fleet: tokens.create_registration_token(fleet, name="rack-1", digest=SECOND)).then_raises(
        ConflictError
    )
    history.when(lambda fleet: tokens.revoke_registration_token(fleet, name="rack-1")).then(
        FleetRegistrationTokenRevoked(name="rack-1")
    )
    assert tokens.registration_token_of(history.fleet, "first secret") is None


def test_a_rotated_registration_token_keeps_its_name_and_loses_its_secret() -> None:
    """N4."""
    history = given(JOIN)
    history.when(lambda fleet: tokens.rotate_registration_token(fleet, name="rack-1", digest=SECOND)).then(
        FleetRegistrationTokenRevoked(name="rack-1"), FleetRegistrationTokenCreated(name="rack-1", digest=SECOND)
    )
    assert tokens.registration_token_of(history.fleet, "first secret") is None
    assert tokens.registration_token_of(history.fleet, "second secret") is not None
    history.when(lambda fleet: tokens.rotate_registration_token(fleet, name="rack-1", digest=SECOND)).then_nothing()


def test_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "TOKENS_MAX", 1)
    given(CREATED).when(creating(name="ops", digest=SECOND)).then_raises(OverloadedError, "revoke one")


class Watched:
    """A known token that is compared in constant time or not at all, and says how often it was looked at."""

    def __init__(self, digest: str) -> None:
        self._digest = Unequal(digest)
        self.looks = 0

    @property
    def digest(self) -> str:
        self.looks += 1
        return self._digest


class Unequal(str):
    """Text that may not be compared by `==`, which ends at the first difference."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError(f"compared with {other!r} by ==")


def test_a_token_is_compared_with_every_known_one_and_in_constant_time() -> None:
    """N4: the time of the answer tells neither how much was right nor which token it was."""
    fleet = given().fleet
    known = [Watched(digest_of(f"secret {number}")) for number in range(4)]
    fleet.registration_tokens.update({str(number): cast(Any, token) for number, token in enumerate(known)})
    found: object = tokens.registration_token_of(fleet, "secret 1")
    assert found is known[1]
    assert tokens.registration_token_of(fleet, "guess") is None
    assert [token.looks for token in known] == [2, 2, 2, 2]
    assert tokens.is_secret_of("secret", Unequal(digest_of("secret")))
