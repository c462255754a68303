"""Who asks: by the unix socket's peer, a token of ours or of Keystone's, or a client's certificate."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control.api.auth.caller import ALL_ROLES, Caller
from control.api.auth.certificates import CertificateMap
from control.api.auth.keystone import Keystone
from control.api.auth.peers import PeerPolicy, peer_of
from control.api.auth.policy import Policy
from control.api.auth.tokens import TokenFile, is_ours
from control.api.errors import NotAuthenticatedError, PeerForbiddenError

if TYPE_CHECKING:
    from aiohttp import web

    from control.config import ApiSettings


class Authentication:
    """All that the configuration lets in, and what they may do."""

    def __init__(self, settings: ApiSettings) -> None:
        """Reads the files that are named (blocks). Raises `StartRefusedError`."""
        self.peers = PeerPolicy(allow_users=settings.allow_users, allow_groups=settings.allow_groups)
        self.policy = Policy(settings.policy_file)
        self._tokens = None if settings.tokens_file is None else TokenFile(settings.tokens_file)
        self._certificates = CertificateMap(settings.certificates) if settings.certificates else None
        self.keystone = None if settings.keystone.auth_url is None else Keystone(settings.keystone)

    async def caller_of(self, request: web.Request) -> Caller:
        """Who sent the request. A token that is sent has to be good, whatever else there is.

        Raises `PeerForbiddenError`, `NotAuthenticatedError`, `AuthUnavailableError`, `BusyError`,
        `ForbiddenError`.
        """
        if not is_tcp(request):
            return self._peer(request)
        try:
            token = _token(request)
            caller = await self._bearer(token, request) if token is not None else self._certified(request)
        except NotAuthenticatedError as error:
            raise NotAuthenticatedError(
                error.message, hint=error.hint, challenges=self._challenges()
            ) from error
        return replace(caller, admin=self.policy.is_admin(caller))

    def keystone_token(self, request: web.Request) -> str | None:
        """The token of Keystone's by which an authenticated request came, if it did."""
        token = _token(request) if self.keystone is not None and is_tcp(request) else None
        return None if token is None or is_ours(token) else token

    async def refresh(self) -> None:
        """Look whether files have changed."""
        await self.policy.refresh()
        if self._tokens is not None:
            await self._tokens.refresh()

    async def aclose(self) -> None:
        """Idempotent."""
        if self.keystone is not None:
            await self.keystone.aclose()

    def _peer(self, request: web.Request) -> Caller:
        sock = request.get_extra_info("socket")
        if sock is None:
            raise PeerForbiddenError("The connection is gone.")
        try:
            peer = peer_of(sock)
        except OSError as error:
            raise PeerForbiddenError(f"The peer cannot be identified: {error.strerror}.") from error
        self.peers.check(peer)
        return Caller(name=peer.principal, roles=ALL_ROLES, is_operator=True)

    async def _bearer(self, token: str, request: web.Request) -> Caller:
        if is_ours(token):
            found = None if self._tokens is None else self._tokens.caller_of(token)
            if found is None:
                raise NotAuthenticatedError("The token is not valid, or not any more.")
            return found
        if self.keystone is None:
            raise NotAuthenticatedError("The token is not valid.")
        service_token = _one(request, "X-Service-Token")
        if service_token is not None and is_ours(service_token):
            raise NotAuthenticatedError("The service's token (X-Service-Token) is none of Keystone's.")
        return await self.keystone.caller_of(token, service_token=service_token)

    def _certified(self, request: web.Request) -> Caller:
        certificate: dict[str, Any] | None = request.get_extra_info("peercert")
        if self._certificates is None or not certificate:
            raise NotAuthenticatedError("Who asks has to say so: there is no token.")
        found = self._certificates.caller_of(certificate)
        if found is None:
            raise NotAuthenticatedError("The certificate is nobody's of api.certificates.")
        return found

    def _challenges(self) -> list[str]:
        challenges = [] if self.keystone is None else [self.keystone.challenge]
        if self._tokens is not None or not challenges:
            challenges.append('Bearer realm="glissade"')
        return challenges


def is_tcp(request: web.Request) -> bool:
    """The request did not come by the unix socket."""
    sock = request.get_extra_info("socket")
    return sock is not None and sock.family != socket.AF_UNIX


def _token(request: web.Request) -> str | None:
    """The token of the request. Raises `NotAuthenticatedError` when there are two of them."""
    token = _one(request, "X-Auth-Token")
    authorization = _one(request, "Authorization")
    if authorization is None:
        return token
    kind, _, bearer = authorization.partition(" ")
    if kind.lower() != "bearer" or not bearer.strip():
        raise NotAuthenticatedError("Only `Authorization: Bearer TOKEN` is understood.")
    if token is not None:
        raise NotAuthenticatedError("There are two tokens.", hint="Send X-Auth-Token or Authorization.")
    return bearer.strip()


def _one(request: web.Request, name: str) -> str | None:
    values = request.headers.getall(name, [])
    if len(values) > 1:
        raise NotAuthenticatedError(f"{name} is there more than once.")
    return values[0].strip() or None if values else None
