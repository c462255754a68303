"""Keystone's tokens: who has one, asked of Keystone itself and remembered for a short while.

Without Keystone nobody is let in whom it has not vouched for within `cache_s`: what cannot be asked is
refused with 503. keystoneauth1 blocks, so it runs in threads; no token is asked about by two of them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from control.api.auth.caller import Caller
from control.api.auth.sealing import master_key, seal, unseal
from control.api.errors import (
    AuthUnavailableError,
    BusyError,
    ForbiddenError,
    NotAuthenticatedError,
    StartRefusedError,
)
from drivers.blocking import BlockingThreads
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keystoneauth1.identity.base import BaseIdentityPlugin
    from keystoneauth1.session import Session

    from control.config.settings import KeystoneSettings

log = logging.getLogger(__name__)

_THREADS: Final = 4
_MOST_ASKED: Final = 256
_MOST_WAITING: Final = 256
_MOST_KNOWN: Final = 10_000
_REFUSAL_KEPT_S: Final = 5.0
_COMPLAIN_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What Keystone said of a token: the caller it stands for, or None when it is not good. Believed until
    `until` (of the monotonic clock).
    """

    caller: Caller | None
    until: float


class Keystone:
    """Asks about tokens. Shared state, changed between awaits only: what is known, the questions under way,
    which belong to nobody who waits for them, and how many strangers wait.
    """

    def __init__(self, settings: KeystoneSettings) -> None:
        """Reaches nothing. Raises `StartRefusedError` when keystoneauth1 is not installed."""
        try:
            from keystoneauth1 import session
        except ImportError as error:
            raise StartRefusedError(
                "[api.keystone] needs the package keystoneauth1.", hint='Install "glissade[keystone]".'
            ) from error
        self._settings = settings
        self._url = _version_three(settings.auth_url or "")
        self._plugin = _plugin(settings, self._url)
        self._session: Session = session.Session(
            auth=self._plugin, verify=settings.ca_file or True, timeout=settings.timeout_s
        )
        self._threads = BlockingThreads("keystone", threads=_THREADS)
        # So that a dump of the memory shows no tokens.
        self._key = secrets.token_bytes(32)
        self._master: bytes | None = None
        self._deriving = asyncio.Lock()
        self._known: dict[tuple[bytes, bool], _Answer] = {}
        self._asking: dict[tuple[bytes, bool], asyncio.Task[_Answer]] = {}
        self._strangers = 0
        self._complained_at = float("-inf")

    @property
    def challenge(self) -> str:
        """What `WWW-Authenticate` says, as keystonemiddleware does."""
        return f'Keystone uri="{self._settings.www_authenticate_uri or self._settings.auth_url}"'

    async def caller_of(self, token: str, *, service_token: str | None = None) -> Caller:
        """Who has this token, with the roles of the service that sent it on, if one did. A service with one
        of `service_token_roles` may use a user's token for a while after it has expired, as Keystone allows
        it: what it does on the user's behalf may last longer.

        Raises `NotAuthenticatedError`, `AuthUnavailableError`, `BusyError`; `ForbiddenError` for a token that
        is for no project.
        """
        service_roles: frozenset[str] = frozenset()
        if service_token is not None:
            service = await self._caller(service_token, may_be_expired=False)
            if service is None:
                raise NotAuthenticatedError("The service's token (X-Service-Token) is not valid.")
            if not service.roles.isdisjoint(self._settings.service_token_roles):
                service_roles = service.roles
        caller = await self._caller(token, may_be_expired=bool(service_roles))
        if caller is None:
            raise NotAuthenticatedError("The token is not valid, or not any more.")
        if caller.project_id is None:
            raise ForbiddenError(
                "The token is for no project.", hint="Ask for one that is scoped to a project."
            )
        return replace(caller, service_roles=service_roles) if service_roles else caller

    async def seal(self, token: str, *, about: str) -> str:
        """See `control.jobs.remotes.Tokens`."""
        return seal(token, await self._master_key(), about=about)

    async def unseal(self, sealed: str, *, about: str) -> str | None:
        """See `control.jobs.remotes.Tokens`."""
        return unseal(sealed, await self._master_key(), about=about)

    async def _master_key(self) -> bytes:
        """For what is sealed. Derived when it is first needed, and only then: it takes memory and time, in a
        thread that others wait for to have their tokens checked.
        """
        async with self._deriving:
            if self._master is None:
                self._master = await self._threads.run(master_key, self._secret)
        return self._master

    async def image_service(self, token: str, *, region: str, interface: str) -> str | None:
        """See `control.jobs.remotes.Tokens`. Raises `AuthUnavailableError`."""
        found = await self._threads.run(self._look_up, token, may_be_expired=False, with_catalogue=True)
        if found is None or _moment(found.get("expires_at")) <= time.time():
            return None
        services = found.get("catalog")
        for service in services if isinstance(services, list) else ():
            if not isinstance(service, dict) or service.get("type") != "image":
                continue
            for endpoint in service.get("endpoints") or ():
                named = str(endpoint.get("region_id") or endpoint.get("region"))
                if named.lower() == region.lower() and endpoint.get("interface") == interface:
                    return str(endpoint.get("url") or "")
        return ""

    @property
    def _secret(self) -> Secret:
        settings = self._settings
        of_credential = settings.application_credential_secret
        secret = settings.password if settings.application_credential_id is None else of_credential
        return secret if secret is not None else Secret("")

    async def aclose(self) -> None:
        """Idempotent."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)
        await self._threads.aclose()
        self._session.session.close()

    async def _caller(self, token: str, *, may_be_expired: bool) -> Caller | None:
        if not token.isascii() or not token.isprintable():
            return None
        key = (hmac.digest(self._key, token.encode(), "sha256"), may_be_expired)
        known = self._known.get(key)
        if known is not None and known.until > time.monotonic():
            return known.caller
        if known is not None and known.caller is not None:
            # Was good a while ago: strangers do not crowd it out.
            return (await self._answered(key, token, may_be_expired=may_be_expired)).caller
        new = key not in self._asking
        if self._strangers >= _MOST_WAITING or (new and len(self._asking) >= _MOST_ASKED):
            raise BusyError("Too many tokens are being asked about.", hint="Try again shortly.")
        self._strangers += 1
        try:
            return (await self._answered(key, token, may_be_expired=may_be_expired)).caller
        finally:
            self._strangers -= 1

    async def _answered(self, key: tuple[bytes, bool], token: str, *, may_be_expired: bool) -> _Answer:
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, token, may_be_expired=may_be_expired))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        # Who leaves does not take the answer from the others.
        return await asyncio.shield(task)

    def _asked(self, key: tuple[bytes, bool], task: asyncio.Task[_Answer]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # Seen: nobody may be waiting for it any more.

    async def _ask(self, key: tuple[bytes, bool], token: str, *, may_be_expired: bool) -> _Answer:
        asked_at = time.monotonic()
        try:
            found = await self._threads.run(self._look_up, token, may_be_expired=may_be_expired)
        except AuthUnavailableError as error:
            if asked_at - self._complained_at >= _COMPLAIN_EVERY_S:
                self._complained_at = asked_at
                log.warning("Nobody new can be let in: %s", error)
            raise
        answer = self._answer(found, asked_at, may_be_expired=may_be_expired)
        self._known.pop(key, None)
        while len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[key] = answer
        return answer

    def _answer(self, found: Mapping[str, Any] | None, asked_at: float, *, may_be_expired: bool) -> _Answer:
        """What is known from now on, and for how long: counted from when we began to ask."""
        cache_s = self._settings.cache_s
        if found is None:
            return _Answer(caller=None, until=asked_at + min(_REFUSAL_KEPT_S, cache_s))
        left_s = _moment(found.get("expires_at")) - time.time()
        if left_s <= 0 and not may_be_expired:
            return _Answer(caller=None, until=asked_at + min(_REFUSAL_KEPT_S, cache_s))
        return _Answer(
            caller=_caller(found), until=asked_at + (cache_s if left_s <= 0 else min(cache_s, left_s))
        )

    def _look_up(
        self, token: str, *, may_be_expired: bool, with_catalogue: bool = False
    ) -> Mapping[str, Any] | None:
        """What Keystone says of a token; None when it is not good. Blocks. Raises `AuthUnavailableError`."""
        from keystoneauth1 import exceptions

        query = "" if with_catalogue else "?nocatalog&allow_expired=1" if may_be_expired else "?nocatalog"
        try:
            answer = self._session.get(
                f"{self._url}/auth/tokens{query}",
                headers={"X-Subject-Token": token},
                authenticated=True,
                raise_exc=False,
                connect_retries=1,
                log=False,
            )
        except (exceptions.Unauthorized, exceptions.Forbidden, exceptions.NotFound) as error:
            raise self._unavailable("does not know the service's own user") from error
        except exceptions.ClientException as error:
            raise self._unavailable(f"failed ({type(error).__name__})") from error
        if answer.status_code == 404:
            return None
        if answer.status_code in (401, 403):
            raise self._unavailable(
                f"does not let the service's user ask about tokens ({answer.status_code})"
            )
        if answer.status_code != 200:
            raise self._unavailable(f"answered {answer.status_code}")
        try:
            found = answer.json()["token"]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise self._unavailable("gave an answer that is none")
        return found

    def _unavailable(self, why: str) -> AuthUnavailableError:
        return AuthUnavailableError(
            f"Keystone at {self._url} {why}.", hint="Tokens cannot be checked; try again."
        )


def _caller(found: Mapping[str, Any]) -> Caller:
    user, project = _part(found, "user"), _part(found, "project")
    roles = found.get("roles")
    return Caller(
        name=f"user={user.get('id')}",
        user_id=user.get("id"),
        project_id=project.get("id"),
        user_domain_id=_part(user, "domain").get("id"),
        project_domain_id=_part(project, "domain").get("id"),
        roles=frozenset(
            str(role.get("name")).lower()
            for role in (roles if isinstance(roles, list) else ())
            if isinstance(role, dict)
        ),
    )


def _part(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = found.get(name)
    return part if isinstance(part, dict) else {}


def _moment(text: object) -> float:
    """An `expires_at` as a time of the wall clock; long ago when there is none."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _version_three(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith("/v3") else f"{url}/v3"


def _plugin(settings: KeystoneSettings, url: str) -> BaseIdentityPlugin:
    from keystoneauth1.identity import v3

    if settings.application_credential_id is not None:
        secret = settings.application_credential_secret
        return v3.ApplicationCredential(
            auth_url=url,
            application_credential_id=settings.application_credential_id,
            application_credential_secret=secret.reveal() if secret is not None else "",
        )
    return v3.Password(
        auth_url=url,
        username=settings.user,
        password=settings.password.reveal() if settings.password is not None else "",
        user_domain_id=settings.user_domain,
        project_name=settings.project,
        project_domain_id=settings.project_domain,
    )
