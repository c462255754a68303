"""Tokens of a real Keystone: who gets in, for how long, and what happens without Keystone."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from control.api.auth import keystone as under_test
from control.api.auth.keystone import Keystone as Asker
from control.api.errors import AuthUnavailableError, BusyError, ForbiddenError, NotAuthenticatedError
from drivers.secret import Secret
from tests.integration.with_keystone import settings_for
from tests.services.http_call import call
from tests.services.processes import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.services.keystone import Keystone

pytestmark = pytest.mark.service("keystone")


@asynccontextmanager
async def asking(keystone: Keystone, **more: Any) -> AsyncIterator[Asker]:
    uri = "https://keystone.example.com:5000/v3"
    asker = Asker(settings_for(keystone, **{"www_authenticate_uri": uri, **more}))
    try:
        yield asker
    finally:
        await asker.aclose()


async def test_a_users_token_says_who_and_for_which_project(keystone: Keystone) -> None:
    token = keystone.token(keystone.demo)
    async with asking(keystone) as asker:
        caller = await asker.caller_of(token)
        assert caller.project_id == keystone.project_id(keystone.demo)
        assert caller.roles >= {"member", "reader"}
        assert "admin" not in caller.roles
        assert caller.name == f"user={caller.user_id}"
        assert (caller.user_domain_id, caller.project_domain_id) == ("default", "default")
        assert not caller.service_roles
        assert not caller.is_operator
        admin = await asker.caller_of(keystone.token(keystone.admin))
        assert admin.is_admin
        assert asker.challenge == 'Keystone uri="https://keystone.example.com:5000/v3"'


async def test_a_token_that_is_none_is_refused(keystone: Keystone) -> None:
    good = keystone.token(keystone.demo)
    async with asking(keystone) as asker:
        for wrong in ("x", good[:-4] + "AAAA", "a b", "tökén", "\x01", good + good):
            with pytest.raises(NotAuthenticatedError):
                await asker.caller_of(wrong)
        await asker.caller_of(good)


async def test_a_revoked_token_is_good_for_no_longer_than_it_is_remembered(keystone: Keystone) -> None:
    token = keystone.token(keystone.demo)
    async with asking(keystone, cache_s=1.0) as asker, asking(keystone, cache_s=0.0) as forgetful:
        await asker.caller_of(token)
        await forgetful.caller_of(token)
        keystone.revoke(token)
        with pytest.raises(NotAuthenticatedError):
            await forgetful.caller_of(token)
        await asyncio.sleep(1.1)
        with pytest.raises(NotAuthenticatedError):
            await asker.caller_of(token)


async def test_a_token_for_no_project_is_refused(keystone: Keystone) -> None:
    user = keystone.demo
    who = {"name": user.name, "domain": {"name": "Default"}, "password": user.password}
    identity = {"methods": ["password"], "password": {"user": who}}
    answer = call(
        "POST",
        f"{keystone.auth_url}/auth/tokens",
        body={"auth": {"identity": identity, "scope": "unscoped"}},
    )
    async with asking(keystone) as asker:
        with pytest.raises(ForbiddenError, match="for no project"):
            await asker.caller_of(str(answer.headers["X-Subject-Token"]))


async def test_a_services_token_adds_its_roles_only_if_it_is_one(keystone: Keystone) -> None:
    user, service = keystone.token(keystone.demo), keystone.token(keystone.mover)
    async with asking(keystone) as asker:
        caller = await asker.caller_of(user, service_token=service)
        assert "service" in caller.service_roles
        assert "service" not in caller.roles
        assert not (await asker.caller_of(user)).service_roles
        # Another user's token is no service's.
        other = await asker.caller_of(user, service_token=keystone.token(keystone.images))
        assert other.service_roles == frozenset()
        with pytest.raises(NotAuthenticatedError, match="X-Service-Token"):
            await asker.caller_of(user, service_token="x")


async def test_without_keystone_who_is_known_stays_for_a_while_and_nobody_new_comes_in(
    keystone: Keystone, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, unknown = keystone.token(keystone.demo), keystone.token(keystone.images)
    later_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later_s, time=time.time)
    monkeypatch.setattr(under_test, "time", clock)
    monkeypatch.setattr(under_test, "_COMPLAIN_EVERY_S", 1000.0)
    async with asking(keystone, cache_s=120.0) as asker:
        await asker.caller_of(known)
        keystone.kill()
        try:
            await asker.caller_of(known)
            with pytest.raises(AuthUnavailableError):
                await asker.caller_of(unknown)
            later_s = 121.0
            with pytest.raises(AuthUnavailableError):
                await asker.caller_of(known)
        finally:
            await asyncio.to_thread(keystone.start)
        # Nobody was remembered as refused.
        assert (await asker.caller_of(known)).project_id is not None
        assert (await asker.caller_of(unknown)).project_id is not None
    assert caplog.text.count("Nobody new can be let in") == 1
    assert known not in caplog.text
    assert unknown not in caplog.text


async def test_many_requests_with_one_token_ask_once(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = keystone.token(keystone.demo)
    asked = 0
    original = Asker._look_up

    def look_up(self: Asker, *args: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        return original(self, *args, **more)

    monkeypatch.setattr(Asker, "_look_up", look_up)
    async with asking(keystone) as asker:
        callers = await asyncio.gather(*(asker.caller_of(token) for _ in range(50)))
        assert len(set(callers)) == 1
        assert asked == 1
        # Who leaves takes the answer from nobody.
        other = keystone.token(keystone.images)
        leaving, staying = (asyncio.create_task(asker.caller_of(other)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).project_id is not None
        assert asked == 2
        for _ in range(10):
            with pytest.raises(NotAuthenticatedError):
                await asker.caller_of("nonsense")
        assert asked == 3


async def test_tokens_that_are_asked_about_are_bounded(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_MOST_ASKED", 3)
    monkeypatch.setattr(under_test, "_MOST_KNOWN", 5)
    async with asking(keystone) as asker:
        found = await asyncio.gather(
            *(asker.caller_of(f"nonsense-{number}") for number in range(10)), return_exceptions=True
        )
        assert sum(isinstance(one, BusyError) for one in found) == 7
        for number in range(10):
            with pytest.raises(NotAuthenticatedError):
                await asker.caller_of(f"nonsense-{number}")
        assert len(asker._known) <= 5


async def test_a_wrong_password_of_ours_lets_nobody_in_and_blames_no_caller(keystone: Keystone) -> None:
    token = keystone.token(keystone.demo)
    async with asking(keystone, password=Secret("wrong")) as asker:
        with pytest.raises(AuthUnavailableError, match="the service's own user") as refused:
            await asker.caller_of(token)
        assert "wrong" not in str(refused.value).replace("went wrong", "")
    # This user may not ask about tokens of others.
    member = keystone.demo
    own = dataclasses.replace(
        settings_for(keystone), user=member.name, password=Secret(member.password), project=member.project
    )
    asker = Asker(own)
    try:
        with pytest.raises(AuthUnavailableError, match="does not let"):
            await asker.caller_of(keystone.token(keystone.images))
    finally:
        await asker.aclose()


async def test_something_else_in_keystones_place_lets_nobody_in(keystone: Keystone) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"token": []}'
        writer.write(
            b"HTTP/1.1 200 OK\r\nX-Subject-Token: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()

    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/v3"
    async with (
        await asyncio.start_server(answer, "127.0.0.1", port),
        asking(keystone, auth_url=url, timeout_s=2.0) as asker,
    ):
        with pytest.raises(AuthUnavailableError):
            await asker.caller_of("gAAAAAB")


async def test_closing_leaves_no_thread_and_no_question(keystone: Keystone) -> None:
    async with asking(keystone) as asker:
        waiting = asyncio.create_task(asker.caller_of(keystone.token(keystone.demo)))
        await asyncio.sleep(0)
    with pytest.raises((asyncio.CancelledError, NotAuthenticatedError)):
        await waiting


async def test_a_token_is_believed_until_its_end_and_an_expired_one_by_services_only(
    keystone: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keystone's answer says when it ends, for its shortest token would last longer than this test; and the
    asker's clock is put forward.
    """
    real = Asker._look_up
    left_s, later_s = 600.0, 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later_s, time=lambda: time.time() + later_s)
    monkeypatch.setattr(under_test, "time", clock)
    asked = list[bool]()

    def look_up(self: Asker, token: str, *, may_be_expired: bool) -> Any:
        asked.append(may_be_expired)
        found = real(self, token, may_be_expired=may_be_expired)
        ends = datetime.now(UTC) + timedelta(seconds=left_s)
        return None if found is None else {**found, "expires_at": ends.isoformat()}

    monkeypatch.setattr(Asker, "_look_up", look_up)
    token, service = keystone.token(keystone.demo), keystone.token(keystone.mover)
    async with asking(keystone, cache_s=3600.0) as asker:
        await asker.caller_of(token)
        await asker.caller_of(token)
        assert asked == [False]
        later_s = 601.0
        left_s = -5.0
        with pytest.raises(NotAuthenticatedError):
            await asker.caller_of(token)
        assert asked == [False, False]
        left_s = 3600.0
        await asker.caller_of(keystone.token(keystone.images), service_token=service)
        left_s = -5.0
        # The service's token is known by now; the user's has expired.
        caller = await asker.caller_of(token, service_token=service)
        assert caller.project_id == keystone.project_id(keystone.demo)
        assert "service" in caller.service_roles
        with pytest.raises(NotAuthenticatedError):
            await asker.caller_of(token)
