"""Tokens that are kept for jobs: what sealing them costs, and who can open them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import TYPE_CHECKING, Any

from control.api.auth.keystone import Keystone
from control.config.settings import KeystoneSettings
from drivers.secret import Secret

if TYPE_CHECKING:
    import pytest


def _node(word: str = "the service's") -> Keystone:
    return Keystone(
        KeystoneSettings(auth_url="http://127.0.0.1:1/v3", user="glissade", password=Secret(word))
    )


async def test_the_slow_derivation_is_done_once_and_not_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    slow = hashlib.scrypt

    def counted(*arguments: Any, **more: Any) -> bytes:
        threads.append(threading.current_thread())
        return slow(*arguments, **more)

    monkeypatch.setattr(hashlib, "scrypt", counted)
    node = _node()
    try:
        # More than there are threads, which all others need to have their tokens checked.
        sealed = await asyncio.gather(*[node.seal(f"token {one}", about="image") for one in range(64)])
        opened = await asyncio.gather(*[node.unseal(one, about="image") for one in sealed])
        assert opened == [f"token {one}" for one in range(64)]
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()
    finally:
        await node.aclose()


async def test_other_nodes_with_the_same_secret_open_it_and_nobody_else() -> None:
    one, other, stranger = _node(), _node(), _node("another")
    try:
        sealed = await one.seal("the token", about="image")
        assert await other.unseal(sealed, about="image") == "the token"
        assert await other.unseal(sealed, about="another image") is None
        assert await stranger.unseal(sealed, about="image") is None
        for damaged in (
            "",
            "AAAA",
            "?",
            sealed[:-8],
            f"A{sealed[1:]}" if sealed[0] != "A" else f"B{sealed[1:]}",
        ):
            assert await other.unseal(damaged, about="image") is None
        assert await one.seal("the token", about="image") != sealed
    finally:
        for node in (one, other, stranger):
            await node.aclose()
