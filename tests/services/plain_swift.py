"""A Swift account by its plain API, with the standard library: what tests know without asking a driver."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, urlencode, urlsplit

from tests.services.http_call import Answer, call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.services.endpoints import SwiftEndpoint

_LISTED_WITHIN_S = 60.0


class PlainSwift:
    """One account and a token for it."""

    def __init__(self, storage_url: str, token: str) -> None:
        self.storage_url = storage_url
        self.token = token

    @classmethod
    def of(cls, endpoint: SwiftEndpoint) -> Self:
        if endpoint.auth_version == "1":
            headers = {"X-Auth-User": endpoint.user, "X-Auth-Key": endpoint.key}
            answer = call("GET", endpoint.auth_url, headers=headers)
            return cls(answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"])
        password = {
            "user": {
                "name": endpoint.user,
                "password": endpoint.key,
                "domain": {"name": endpoint.user_domain or "Default"},
            }
        }
        scope = {
            "project": {"name": endpoint.project, "domain": {"name": endpoint.project_domain or "Default"}}
        }
        answer = call(
            "POST",
            f"{endpoint.auth_url.rstrip('/')}/auth/tokens",
            body={"auth": {"identity": {"methods": ["password"], "password": password}, "scope": scope}},
        )
        urls = [
            found["url"]
            for service in answer.json()["token"]["catalog"]
            if service["type"] == "object-store"
            for found in service["endpoints"]
            if found["interface"] == "public" and found["region_id"] in (endpoint.region, found["region_id"])
        ]
        return cls(urls[0], answer.headers["X-Subject-Token"])

    def __call__(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request, whatever it answers; `path` is within the account, and quoted."""
        parts = urlsplit(self.storage_url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=60)
        try:
            sent = {"X-Auth-Token": self.token, **(headers or {})}
            connection.request(method, parts.path.rstrip("/") + path, body=body, headers=sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def put(self, container: str, name: str, data: bytes = b"", **headers: str) -> Answer:
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = self("PUT", f"/{container}/{quote(name)}", body=data, headers=sent)
        assert answer.status == 201, answer
        return answer

    def head(self, container: str, name: str) -> Answer:
        return self("HEAD", f"/{container}/{quote(name)}")

    def get(self, container: str, name: str) -> bytes:
        answer = self("GET", f"/{container}/{quote(name)}")
        assert answer.status == 200, answer
        return answer.body

    def names(self, container: str) -> set[str]:
        """Everything in the container."""
        found: set[str] = set()
        marker = ""
        while True:
            query = urlencode({"format": "json", "marker": marker, "limit": "1000"})
            page = self._page(f"/{container}?{query}")
            entries = json.loads(page.body) if page.status == 200 else []
            if not entries:
                return found
            marker = entries[-1]["name"]
            found.update(entry["name"] for entry in entries)

    def _page(self, path: str) -> Answer:
        """A server that is too busy to list has not said that nothing is there."""
        deadline = time.monotonic() + _LISTED_WITHIN_S
        while (page := self("GET", path)).status not in (200, 204, 404):
            assert time.monotonic() < deadline, page
            time.sleep(0.5)
        return page

    def left_over(self, container: str) -> set[str]:
        """Everything in the container but the segments of static large objects that are there."""
        names = self.names(container)
        for name in [name for name in names if "/" not in name]:
            head = self.head(container, name)
            if head.headers.get("X-Static-Large-Object", "").lower() == "true":
                names -= self._segments(container, name, head, names)
        return names

    def empty(self, container: str) -> None:
        for name in self.names(container):
            self("DELETE", f"/{container}/{quote(name)}")

    def _segments(self, container: str, name: str, head: Answer, names: set[str]) -> set[str]:
        """By the manifest; radosgw does not show it, there the folder that the object names has to hold
        nothing else.
        """
        manifest = self("GET", f"/{container}/{quote(name)}?multipart-manifest=get").body
        if manifest:
            return {entry["name"].removeprefix(f"/{container}/") for entry in json.loads(manifest)}
        folder = f"{name}/{head.headers['X-Object-Meta-Glissade-Object']}/"
        found = {other for other in names if other.startswith(folder)}
        numbers = [int(other.removeprefix(folder).partition("-")[0]) for other in sorted(found)]
        return found if numbers == list(range(1, len(numbers) + 1)) else set()
