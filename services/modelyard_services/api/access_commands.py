"""Tokens of clients and of workers, and the settings of the whole fleet: an administrator's."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
from litestar import Controller, delete, get, patch, post, put
from litestar.params import FromPath, FromQuery, JSONBody

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import Role
from modelyard_projections.fleet import Fleet
from modelyard_services.api import token_views
from modelyard_services.api.access import requires
from modelyard_services.api.queries import Cursor, Limit
from modelyard_services.api.service import PAGE_MAX, ApiRequest, CommandView, answer, page, service_of
from modelyard_services.effects.journal import Committed
from modelyard_services.errors import ConflictError
from modelyard_services.policy import liveness, tokens
from modelyard_services.policy import settings as policy

Name = FromPath[str]
Setting = bool | int | float | str
"""A setting's value as JSON has it: whether it is of the right kind, the setting itself says."""


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    role: Role = "viewer"


class RegistrationTokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class TokenAnswer(msgspec.Struct, frozen=True):
    """The token, this once: only its digest is kept."""

    sequence: int
    name: str
    token: str


class TokenList(msgspec.Struct, frozen=True):
    items: list[token_views.TokenView]
    next: str | None
    sequence: int


class AccessCommands(Controller):
    """Who may ask, and what holds for all."""

    guards = [requires("admin")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["access"]  # noqa: RUF012 - as above

    @get("/tokens", summary="List tokens")
    async def list_tokens(
        self, request: ApiRequest, *, revoked: FromQuery[bool] = False, limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> TokenList:
        """Clients' tokens in the order of their names; the tokens themselves are stored nowhere."""
        service = service_of(request)
        living = [token_views.token_view(token, service.runtime.demand) for token in service.fleet.tokens.values()]
        gone = [view for view in _revoked(service.fleet) if view.role is not None] if revoked else []
        return _list(service.fleet, [*living, *gone], limit=limit, after=after)

    @post("/tokens", status_code=201, summary="Create a token")
    async def create_token(self, request: ApiRequest, data: JSONBody[TokenBody]) -> TokenAnswer:
        """Make a token; it is told this once."""
        return await _made(request, data.name, partial(tokens.create_token, name=data.name, role=data.role))

    @post("/tokens/{name:str}/rotate", status_code=200, summary="Rotate a token")
    async def rotate_token(self, request: ApiRequest, name: Name) -> TokenAnswer:
        """Another secret under the same name and role; the one before is worth nothing from now on."""
        return await _made(request, name, partial(tokens.rotate_token, name=name))

    @delete("/tokens/{name:str}", status_code=200, summary="Revoke a token")
    async def revoke_token(self, request: ApiRequest, name: Name) -> CommandView:
        """Who uses it is refused from now on."""
        return answer(await service_of(request).commit(request, lambda fleet: tokens.revoke_token(fleet, name=name)))

    @get("/registration-tokens", summary="List registration tokens")
    async def list_registration_tokens(
        self, request: ApiRequest, *, revoked: FromQuery[bool] = False, limit: Limit = PAGE_MAX, after: Cursor = None
    ) -> TokenList:
        """Workers' tokens in the order of their names; the tokens themselves are stored nowhere."""
        fleet = service_of(request).fleet
        living = [token_views.token_view(token) for token in fleet.registration_tokens.values()]
        gone = [view for view in _revoked(fleet) if view.role is None] if revoked else []
        return _list(fleet, [*living, *gone], limit=limit, after=after)

    @post("/registration-tokens", status_code=201, summary="Create a registration token")
    async def create_registration_token(
        self, request: ApiRequest, data: JSONBody[RegistrationTokenBody]
    ) -> TokenAnswer:
        """Make a token that workers register with (N4); it is told this once."""
        return await _made(request, data.name, partial(tokens.create_registration_token, name=data.name))

    @post("/registration-tokens/{name:str}/rotate", status_code=200, summary="Rotate a registration token")
    async def rotate_registration_token(self, request: ApiRequest, name: Name) -> TokenAnswer:
        """Another secret under the same name; workers that connect with the one before are refused from now on."""
        return await _made(request, name, partial(tokens.rotate_registration_token, name=name))

    @delete("/registration-tokens/{name:str}", status_code=200, summary="Revoke a registration token")
    async def revoke_registration_token(self, request: ApiRequest, name: Name) -> CommandView:
        """Workers that use it are refused from their next connection on."""
        return answer(
            await service_of(request).commit(request, lambda fleet: tokens.revoke_registration_token(fleet, name=name))
        )

    @patch("/settings", status_code=200, summary="Change settings")
    async def patch_settings(self, request: ApiRequest, data: JSONBody[dict[str, Setting | None]]) -> CommandView:
        """Change the settings given; null gives a default back."""
        service = service_of(request)
        done = await service.commit(
            request,
            lambda fleet: policy.patch_settings(fleet, patch=data),
            matches=lambda fleet: fleet.settings_sequence,
        )
        return answer(done)

    @put("/settings", status_code=200, summary="Replace the settings")
    async def replace_settings(self, request: ApiRequest, data: JSONBody[dict[str, Setting]]) -> CommandView:
        """Set the settings given, and the defaults for all others."""
        service = service_of(request)
        done = await service.commit(
            request,
            lambda fleet: policy.replace_settings(fleet, settings=data),
            matches=lambda fleet: fleet.settings_sequence,
        )
        return answer(done)

    @post("/settings/clear-mass-loss", status_code=200, summary="Say that a mass loss is real")
    async def clear_mass_loss(self, request: ApiRequest) -> CommandView:
        """Release the brake (N9): the replicas of nodes that stay silent end when their grace does."""
        return answer(await service_of(request).commit(request, liveness.clear_mass_loss))


async def _made(request: ApiRequest, name: str, decide: Callable[..., Sequence[AnyEvent]]) -> TokenAnswer:
    """A new secret under `name`, by what `decide(fleet, digest=…)` says; it is told this once."""
    service = service_of(request)
    secret = service.runtime.ids.secret()
    done = await service.commit(request, partial(decide, digest=tokens.digest_of(secret)))
    return _told(done, name, secret)


def _told(done: Committed, name: str, secret: str) -> TokenAnswer:
    """The secret, which nobody is told twice: of a repeated request it is not the one that counts."""
    if done.repeated:
        raise ConflictError(f"token {name!r} was made and told already; rotate it to have another")
    return TokenAnswer(done.sequence, name, secret)


def _revoked(fleet: Fleet) -> list[token_views.TokenView]:
    return [token_views.revoked_token_view(revoked) for revoked in fleet.revoked_tokens.values()]


def _list(fleet: Fleet, found: list[token_views.TokenView], *, limit: int, after: str | None) -> TokenList:
    # Several of one name may have been revoked; the id tells them apart.
    items, cursor = page(found, lambda view: f"{view.name} {view.id}", limit=limit, after=after)
    return TokenList(items, cursor, fleet.sequence)
