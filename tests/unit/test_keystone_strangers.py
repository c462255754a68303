"""Those whom Keystone does not know keep out nobody whom it knows."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control.api.auth import keystone as under_test
from control.api.auth.keystone import Keystone
from control.api.errors import BusyError, NotAuthenticatedError
from control.config.settings import KeystoneSettings
from drivers.secret import Secret


async def test_who_was_known_is_asked_about_while_strangers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_MOST_WAITING", 2)
    go = threading.Event()
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    def look_up(_self: Keystone, token: str, **_more: Any) -> Any:
        if token == "known":
            return {"expires_at": ends, "user": {"id": "u"}, "project": {"id": "p"}, "roles": []}
        go.wait(20)
        return None

    monkeypatch.setattr(Keystone, "_look_up", look_up)
    settings = KeystoneSettings(
        auth_url="http://127.0.0.1:1/v3", user="glissade", password=Secret("x"), cache_s=0.0
    )
    asker = Keystone(settings)
    try:
        await asker.caller_of("known")
        # With one token, which is asked about once.
        strangers = [asyncio.create_task(asker.caller_of("stranger")) for _ in range(2)]
        await asyncio.sleep(0)
        for token in ("stranger", "another"):
            with pytest.raises(BusyError):
                await asker.caller_of(token)
        assert (await asker.caller_of("known")).project_id == "p"
        go.set()
        for one in strangers:
            with pytest.raises(NotAuthenticatedError):
                await one
        assert asker._strangers == 0
    finally:
        go.set()
        await asker.aclose()
