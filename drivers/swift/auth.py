"""Tokens and storage URLs: from Keystone (keystoneauth1, in a thread) or by version 1 (TempAuth, radosgw)."""

from __future__ import annotations

import asyncio
import configparser
import ssl
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from keystoneauth1 import exceptions as keystone_errors
from keystoneauth1 import session as keystone_session
from keystoneauth1.identity import v3

from dataplane.errors import AccessDeniedError, StoreError, UnavailableError
from drivers.blocking import BlockingThreads
from drivers.secret import Secret
from drivers.wire import certificate_hint, exchange, retry_after_s, wire_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiohttp
    from keystoneauth1.identity.base import BaseIdentityPlugin

    from drivers.options import StoreOptions
    from drivers.swift.config import SwiftConfig


_ASK_AGAIN_S: Final = 300.0
"""After this long Keystone's plugin is asked again: it gets a new token in time, which saves a refusal in the
middle of a transfer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An account and the right to use it."""

    storage_url: str
    token: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who we are, and to whom that is said."""

    auth_url: str
    auth_version: str
    user: str | None = None
    key: Secret | None = None
    project: str | None = None
    project_id: str | None = None
    user_domain: str = "default"
    project_domain: str = "default"
    user_domain_name: str | None = None
    project_domain_name: str | None = None
    application_credential_id: str | None = None
    application_credential_secret: Secret | None = None


class _Identity(Protocol):
    """Asks for a new token. `renewed`: the last one was refused."""

    async def ask(self, *, renewed: bool) -> Access: ...

    async def aclose(self) -> None: ...


class Account:
    """The access of one store. Shared state: the current access, and the task that asks for another one, of
    which there is at most one. It belongs to nobody who waits for it: who is cancelled does not wait for a
    Keystone that hangs.
    """

    def __init__(
        self,
        store: str,
        config: SwiftConfig,
        options: StoreOptions,
        session: Callable[[], Awaitable[aiohttp.ClientSession]],
    ) -> None:
        self._store = store
        self._config = config
        self._options = options
        self._session = session
        self._asked_at = 0.0
        self._threads = BlockingThreads(f"swift-{store}", threads=1)
        self._asking: asyncio.Task[Access] | None = None
        self._identity: _Identity | None = None
        self._access: Access | None = None

    async def access(self, *, refused: Access | None = None) -> Access:
        """The access to use now; a new one when it is `refused`. Raises `AccessDeniedError`,
        `UnavailableError`, `StoreError`.
        """
        while True:
            found = self._access
            is_usable = found is not None and (refused is None or found.token != refused.token)
            asking = self._asking
            if found is not None and is_usable and (asking is not None or not self._is_old()):
                return found
            if asking is None:
                break
            await asyncio.shield(asking)
        asking = self._asking = asyncio.create_task(self._ask(renewed=refused is not None))
        asking.add_done_callback(self._has_asked)
        try:
            return await asyncio.shield(asking)
        except UnavailableError:
            if found is None or not is_usable:
                raise
            self._asked_at = time.monotonic()  # The one we have may do for a while.
            return found

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        self._access = None
        identity, self._identity = self._identity, None
        if identity is not None:
            await identity.aclose()
        await self._threads.aclose()

    def _is_old(self) -> bool:
        return time.monotonic() - self._asked_at > _ASK_AGAIN_S

    def _has_asked(self, asking: asyncio.Task[Access]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # Seen: nobody may be waiting for it any more.

    async def _ask(self, *, renewed: bool) -> Access:
        if self._identity is None:
            credentials = await self._threads.run(credentials_of, self._store, self._config)
            self._identity = (
                _VersionOne(self._store, credentials, self._session)
                if credentials.auth_version == "1"
                else _Keystone(self._store, credentials, self._config, self._options, self._threads)
            )
        access = await self._identity.ask(renewed=renewed)
        storage_url = (self._config.endpoint or access.storage_url).rstrip("/")
        self._access = access = replace(access, storage_url=storage_url)
        self._asked_at = time.monotonic()
        return access


def credentials_of(store: str, config: SwiftConfig) -> Credentials:
    """What the configuration says, or its reference file. Blocks. Raises `StoreError`."""
    if config.reference_file is not None:
        return _referenced(store, config.reference_file, config.reference)
    user, project = config.user, config.project
    if config.auth_version == "3" and user is not None and project is None and ":" in user:
        project, _, user = user.partition(":")
    return Credentials(
        auth_url=config.auth_url or "",
        auth_version=config.auth_version,
        user=user,
        key=config.key,
        project=project,
        user_domain=config.user_domain,
        project_domain=config.project_domain,
        application_credential_id=config.application_credential_id,
        application_credential_secret=config.application_credential_secret,
    )


def _referenced(store: str, path: str, reference: str) -> Credentials:
    """A section of glance_store's reference file."""
    section = _Section(store, path, reference)
    auth_url = section.text("auth_address")
    if auth_url is None:
        raise section.unusable("has no auth_address")
    user, project = section.text("user"), section.text("project_name")
    auth_version = (section.text("auth_version") or "3").partition(".")[0]
    if auth_version == "3" and user is not None and ":" in user:
        project, _, user = user.partition(":")
    credentials = Credentials(
        auth_url=auth_url if "://" in auth_url else f"https://{auth_url}",
        auth_version=auth_version,
        user=user,
        key=section.secret("key"),
        project=project,
        project_id=section.text("project_id"),
        user_domain=section.text("user_domain_id") or "default",
        project_domain=section.text("project_domain_id") or "default",
        user_domain_name=section.text("user_domain_name"),
        project_domain_name=section.text("project_domain_name"),
        application_credential_id=section.text("application_credential_id"),
        application_credential_secret=section.secret("application_credential_secret"),
    )
    has_id = credentials.application_credential_id is not None
    if has_id != (credentials.application_credential_secret is not None):
        raise section.unusable("has half of an application credential")
    if not has_id and (credentials.user is None or credentials.key is None):
        raise section.unusable("has neither user and key nor an application credential")
    return credentials


class _Section:
    """A section of an INI file, whose values may be quoted."""

    def __init__(self, store: str, path: str, name: str) -> None:
        self._store = store
        self._path = path
        self._name = name
        self._parser = configparser.ConfigParser(interpolation=None)
        try:
            with open(path, encoding="utf-8") as file:
                self._parser.read_file(file)
        except OSError as error:
            raise self._unusable(error.strerror or type(error).__name__) from error
        except (configparser.Error, UnicodeDecodeError):
            # Their texts quote lines of the file, which holds keys.
            raise self._unusable("is no INI file") from None
        if not self._parser.has_section(name):
            raise self._unusable(f"has no section [{name}]", "Set `reference` to one of its sections.")

    def text(self, name: str) -> str | None:
        text = self._parser.get(self._name, name, fallback=None)
        if text and text[0] in "\"'":
            if len(text) == 1 or text[-1] != text[0]:
                raise self.unusable(f"{name} has no closing quote")
            text = text[1:-1]
        return text or None

    def secret(self, name: str) -> Secret | None:
        text = self.text(name)
        return None if text is None else Secret(text, source=f"file {self._path}")

    def unusable(self, why: str) -> StoreError:
        return self._unusable(f"[{self._name}] {why}")

    def _unusable(self, why: str, hint: str = "") -> StoreError:
        return StoreError(
            f"{self._store}: reference_file {self._path!r}: {why}.",
            store=self._store,
            hint=hint or "It is glance_store's swift_store_config_file; the service's user has to read it.",
        )


class _VersionOne:
    """`X-Auth-User` and `X-Auth-Key` against a storage URL and a token."""

    def __init__(
        self,
        store: str,
        credentials: Credentials,
        session: Callable[[], Awaitable[aiohttp.ClientSession]],
    ) -> None:
        self._store = store
        self._credentials = credentials
        self._session = session

    async def ask(self, *, renewed: bool) -> Access:  # noqa: ARG002 - the signature that all kinds of access share
        credentials = self._credentials
        headers = {
            "X-Auth-User": credentials.user or "",
            "X-Auth-Key": credentials.key.reveal() if credentials.key is not None else "",
        }
        session = await self._session()
        with wire_errors(self._store, None, f"asking {credentials.auth_url} for a token"):
            async with exchange(session, "GET", credentials.auth_url, headers=headers) as response:
                status, answer = response.status, response.headers
        if status in (401, 403):
            raise _refused(self._store, credentials.auth_url)
        if status >= 500 or status == 429:
            raise UnavailableError(
                f"{self._store}: {credentials.auth_url} answered {status}.",
                store=self._store,
                retry_after_s=retry_after_s(answer.get("Retry-After")),
            )
        storage_url, token = answer.get("X-Storage-Url"), answer.get("X-Auth-Token")
        if status // 100 != 2 or storage_url is None or token is None:
            raise StoreError(
                f"{self._store}: {credentials.auth_url} answered {status}, and no token.",
                store=self._store,
                hint='Is it an address of version 1 (".../auth/v1.0")? Keystone needs auth_version = "3".',
            )
        return Access(storage_url=storage_url, token=Secret(token))

    async def aclose(self) -> None:
        pass


class _Keystone:
    """Keystone version 3. The plugin asks for a new token by itself before the old one ends."""

    def __init__(
        self,
        store: str,
        credentials: Credentials,
        config: SwiftConfig,
        options: StoreOptions,
        threads: BlockingThreads,
    ) -> None:
        self._store = store
        self._credentials = credentials
        self._config = config
        self._timeout_s = options.connect_timeout_s + options.stall_timeout_s
        self._threads = threads
        self._plugin: BaseIdentityPlugin | None = None

    async def ask(self, *, renewed: bool) -> Access:
        return await self._threads.run(self._ask, renewed=renewed)

    async def aclose(self) -> None:
        self._plugin = None

    def _ask(self, *, renewed: bool) -> Access:
        auth_url = self._credentials.auth_url
        if self._plugin is None:
            self._plugin = _plugin(self._credentials)
        session = keystone_session.Session(
            auth=self._plugin, verify=self._config.ca_file or True, timeout=self._timeout_s
        )
        try:
            if renewed:
                self._plugin.invalidate()
            token = session.get_token()
            endpoint = self._config.endpoint or session.get_endpoint(
                service_type=self._config.service_type,
                interface=self._config.endpoint_type,
                region_name=self._config.region,
            )
        except (keystone_errors.Unauthorized, keystone_errors.Forbidden) as error:
            raise _refused(self._store, auth_url) from error
        except keystone_errors.EndpointNotFound as error:
            raise self._no_endpoint() from error
        except keystone_errors.SSLError as error:
            raise StoreError(
                f"{self._store}: no trusted TLS connection to {auth_url}.",
                store=self._store,
                hint=certificate_hint(_certificate_error(error)),
            ) from error
        except (
            keystone_errors.ConnectFailure,
            keystone_errors.ConnectTimeout,
            keystone_errors.UnknownConnectionError,
            keystone_errors.RetriableConnectionFailure,
            keystone_errors.HttpServerError,
        ) as error:
            raise UnavailableError(
                f"{self._store}: Keystone at {auth_url} failed: {type(error).__name__}.", store=self._store
            ) from error
        except keystone_errors.ClientException as error:
            raise StoreError(
                f"{self._store}: Keystone at {auth_url} gave no token: {type(error).__name__}.",
                store=self._store,
                hint="Check auth_url, project and the domains.",
            ) from error
        finally:
            session.session.close()
        if endpoint is None or token is None:
            raise self._no_endpoint()
        return Access(storage_url=str(endpoint), token=Secret(token))

    def _no_endpoint(self) -> StoreError:
        config = self._config
        where = f" in region {config.region}" if config.region else ""
        return StoreError(
            f"{self._store}: the catalogue has no {config.endpoint_type} endpoint of type"
            f" {config.service_type!r}{where}.",
            store=self._store,
            hint="Check region, endpoint_type and service_type, or set endpoint.",
        )


def _plugin(credentials: Credentials) -> BaseIdentityPlugin:
    url = credentials.auth_url.rstrip("/")
    if not url.endswith("/v3"):
        url += "/v3"
    if credentials.application_credential_id is not None:
        secret = credentials.application_credential_secret
        return v3.ApplicationCredential(
            auth_url=url,
            application_credential_id=credentials.application_credential_id,
            application_credential_secret=secret.reveal() if secret is not None else "",
        )
    user_domain = _domain(credentials.user_domain, credentials.user_domain_name)
    project_domain = _domain(credentials.project_domain, credentials.project_domain_name)
    return v3.Password(
        auth_url=url,
        username=credentials.user,
        password=credentials.key.reveal() if credentials.key is not None else "",
        user_domain_id=user_domain.id,
        user_domain_name=user_domain.name,
        project_id=credentials.project_id,
        project_name=None if credentials.project_id else credentials.project,
        project_domain_id=None if credentials.project_id else project_domain.id,
        project_domain_name=None if credentials.project_id else project_domain.name,
    )


@dataclass(frozen=True, slots=True)
class _Domain:
    id: str | None
    name: str | None


def _domain(domain_id: str, name: str | None) -> _Domain:
    """A domain by its name where one is given, else by its id ("default" is one)."""
    return _Domain(None, name) if name is not None else _Domain(domain_id, None)


def _certificate_error(error: BaseException) -> BaseException | None:
    """What the ssl module said, below the errors of three libraries."""
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        one = left.pop()
        if not isinstance(one, BaseException) or one in seen:
            continue
        if isinstance(one, ssl.SSLCertVerificationError):
            return one
        seen.append(one)
        left += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return None


def _refused(store: str, auth_url: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"{store}: {auth_url} does not accept the configured user and key.",
        store=store,
        hint="Check user, key and project (or the application credential).",
    )
