"""Tokens of clients and of workers, and the settings of the whole fleet: an administrator's."""

import msgspec
from litestar import Controller, delete, get, patch, post, put
from litestar.params import FromPath, JSONBody

from modelyard_events.envelope import instant
from modelyard_events.fleet import Role
from modelyard_services.api.access import requires
from modelyard_services.api.service import ApiRequest, CommandView, answer, service_of
from modelyard_services.errors import ConflictError
from modelyard_services.policy import settings as policy
from modelyard_services.policy import tokens

Name = FromPath[str]


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


class TokenView(msgspec.Struct, frozen=True):
    name: str
    role: str
    since: str


class TokenList(msgspec.Struct, frozen=True):
    items: list[TokenView]
    next: str | None
    sequence: int


class AccessCommands(Controller):
    """Who may ask, and what holds for all."""

    guards = [requires("admin")]  # noqa: RUF012 - the framework reads it as a class attribute
    tags = ["access"]  # noqa: RUF012 - as above

    @get("/tokens", summary="List tokens")
    async def list_tokens(self, request: ApiRequest) -> TokenList:
        """Tokens by name and role."""
        fleet = service_of(request).fleet
        known = sorted(fleet.tokens.values(), key=lambda token: token.name)
        items = [TokenView(token.name, token.role, instant(token.since_ns).isoformat()) for token in known]
        return TokenList(items, None, fleet.sequence)

    @post("/tokens", status_code=201, summary="Create a token")
    async def create_token(self, request: ApiRequest, data: JSONBody[TokenBody]) -> TokenAnswer:
        """Make a token; it is told this once."""
        service = service_of(request)
        secret = service.runtime.ids.secret()
        digest = tokens.digest_of(secret)
        done = await service.commit(
            request, lambda fleet: tokens.create_token(fleet, name=data.name, role=data.role, digest=digest)
        )
        if done.repeated:
            raise ConflictError(f"token {data.name!r} was created and told already; revoke it and create another")
        return TokenAnswer(done.sequence, data.name, secret)

    @delete("/tokens/{name:str}", status_code=200, summary="Revoke a token")
    async def revoke_token(self, request: ApiRequest, name: Name) -> CommandView:
        """Who uses it is refused from now on."""
        return answer(await service_of(request).commit(request, lambda fleet: tokens.revoke_token(fleet, name=name)))

    @post("/registration-tokens", status_code=201, summary="Create a registration token")
    async def create_registration_token(
        self, request: ApiRequest, data: JSONBody[RegistrationTokenBody]
    ) -> TokenAnswer:
        """Make a token that workers register with (N4); it is told this once."""
        service = service_of(request)
        secret = service.runtime.ids.secret()
        digest = tokens.digest_of(secret)
        done = await service.commit(
            request, lambda fleet: tokens.create_registration_token(fleet, name=data.name, digest=digest)
        )
        if done.repeated:
            raise ConflictError(f"token {data.name!r} was created and told already; revoke it and create another")
        return TokenAnswer(done.sequence, data.name, secret)

    @delete("/registration-tokens/{name:str}", status_code=200, summary="Revoke a registration token")
    async def revoke_registration_token(self, request: ApiRequest, name: Name) -> CommandView:
        """Workers that use it are refused from their next connection on."""
        return answer(
            await service_of(request).commit(request, lambda fleet: tokens.revoke_registration_token(fleet, name=name))
        )

    @patch("/settings", status_code=200, summary="Change settings")
    async def patch_settings(self, request: ApiRequest, data: JSONBody[dict[str, float | bool | None]]) -> CommandView:
        """Change the settings given; null gives a default back."""
        service = service_of(request)
        done = await service.commit(
            request,
            lambda fleet: policy.patch_settings(fleet, patch=data),
            matches=lambda fleet: fleet.settings_sequence,
        )
        return answer(done)

    @put("/settings", status_code=200, summary="Replace the settings")
    async def replace_settings(self, request: ApiRequest, data: JSONBody[dict[str, float | bool]]) -> CommandView:
        """Set the settings given, and the defaults for all others."""
        service = service_of(request)
        done = await service.commit(
            request,
            lambda fleet: policy.replace_settings(fleet, settings=data),
            matches=lambda fleet: fleet.settings_sequence,
        )
        return answer(done)
