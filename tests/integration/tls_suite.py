"""What every driver that speaks TLS has to do about a server that nobody vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dataplane.errors import StoreError
from tests.conformance.images import read_image, write_image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dataplane.store import Driver

UNTRUSTED = pytest.mark.parametrize(
    ("ca", "host"),
    [("other.pem", "127.0.0.1"), (None, "127.0.0.1"), ("ca.pem", "localhost")],
    ids=["another-authority", "no-authority", "another-name"],
)
"""Whom the driver trusts, and the name it asks for."""


async def refuses_untrusted(driver: Driver, key: str, host: str) -> None:
    """Whatever the driver is asked for, it fails for good and says what to do."""
    works: list[Callable[[], Awaitable[object]]] = [
        driver.probe,
        lambda: driver.stat(key),
        lambda: read_image(driver, key),
        lambda: write_image(driver, key, b"x"),
    ]
    for work in works:
        with pytest.raises(StoreError, match="no trusted TLS connection") as raised:
            await work()
        assert not raised.value.retryable
        assert ("another host" if host == "localhost" else "ca_file") in raised.value.hint
