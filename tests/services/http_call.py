"""Small HTTP requests to servers on loopback, with the standard library only."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.services.processes import ServiceError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body, read as JSON; None when there is none."""
        return json.loads(self.body) if self.body else None


def call(method: str, url: str, *, headers: Mapping[str, str] | None = None, body: object = None) -> Answer:
    """Do one request, its body sent as JSON. ServiceError unless it is answered with a 2xx."""
    answer = _exchange(method, url, headers or {}, body)
    if not 200 <= answer.status < 300:
        raise ServiceError(f"{method} {url} was answered with {answer.status}: {answer.body[:500]!r}")
    return answer


def answers(url: str) -> bool:
    """Whether a GET is answered with a 2xx or 3xx just now."""
    try:
        return 200 <= _exchange("GET", url, {}, None).status < 400
    except OSError:
        return False


def _exchange(method: str, url: str, headers: Mapping[str, str], body: object) -> Answer:
    parts = urlsplit(url)
    data = None if body is None else json.dumps(body).encode()
    kind = {} if data is None else {"Content-Type": "application/json"}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request(method, f"{parts.path or '/'}?{parts.query}", data, {**kind, **headers})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    except http.client.HTTPException as error:
        raise ConnectionError(f"{method} {url}: {error!r}") from error
    finally:
        connection.close()
