"""One request to a server that the bench has started on this machine."""

from __future__ import annotations

import http.client
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping


def call(
    method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> tuple[int, bytes]:
    """The answer's status and body. Raises OSError or `http.client.HTTPException` when there is none."""
    place = urlsplit(url)
    target = f"{place.path}?{place.query}" if place.query else place.path
    with closing(
        http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout_s)
    ) as connection:
        connection.request(method, target, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
