"""Objects of an account: described, put, copied, listed, and removed with what belongs to them."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from dataplane.errors import IntegrityError, NotFoundError, StoreError, UnavailableError
from drivers.patience import to_the_end
from drivers.swift.client import LONG_ANSWER_S, Answer
from drivers.swift.names import SESSION_HEADER, TOKEN_HEADER, folder, probe_name, segment_number
from drivers.swift.url import object_path, unquoted
from drivers.wire import Pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from drivers.swift.client import Limits, SwiftClient
    from drivers.swift.config import SwiftConfig
    from drivers.wire import Body

_CONTENT_TYPE: Final = {"Content-Type": "application/octet-stream"}
_ONE_BYTE: Final = {"Range": "bytes=0-0"}
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_DELETES_AT_ONCE: Final = 8
_BULK_FROM: Final = 8
"""Fewer objects than this are deleted one by one, which tells of each what happened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object as a HEAD or a GET tells it. `token` and `session` are ours, None when somebody else made the
    object. `dynamic`: container and prefix of the segments of a dynamic large object.
    """

    size_bytes: int | None
    etag: str
    timestamp: str
    token: str | None
    session: str | None
    is_static_large: bool
    dynamic: str | None

    @property
    def identity(self) -> str:
        """The time of an object changes with its metadata; what we made carries a name that does not."""
        return f"{self.etag}:{self.token}" if self.token is not None else f"{self.etag}:{self.timestamp}"

    def is_the_one(self, identity: str) -> bool:
        """As for `identity`, but a dynamic large object stays the one while its segments go: so that a delete
        which was cut off can be taken up.
        """
        if self.dynamic is not None and self.token is None:
            return identity.rpartition(":")[2] == self.timestamp
        return self.identity == identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment in the store; `container` and `name` say where."""

    container: str
    name: str
    size_bytes: int
    etag: str


def found_by(headers: Mapping[str, str], size_bytes: int | None) -> Found:
    """What the headers of an answer tell."""
    return Found(
        size_bytes=size_bytes,
        etag=headers.get("ETag", "").strip('"'),
        timestamp=headers.get("X-Timestamp", "") or headers.get("Last-Modified", ""),
        token=headers.get(TOKEN_HEADER),
        session=headers.get(SESSION_HEADER),
        is_static_large=headers.get("X-Static-Large-Object", "").lower() in ("true", "1", "yes"),
        dynamic=headers.get("X-Object-Manifest"),
    )


def total_of(content_range: str | None, *, first: int) -> int | None:
    """The size of the whole object by a Content-Range, if it begins where it should."""
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    return int(match[3]) if match is not None and int(match[1]) == first else None


class Objects:
    """The operations on one account. Shared state: whether the server knows conditional requests, found out
    once.
    """

    def __init__(self, client: SwiftClient, config: SwiftConfig) -> None:
        self.client = client
        self._config = config
        self._conditional: bool | None = None

    @property
    def store(self) -> str:
        return self.client.store

    async def find(
        self,
        container: str,
        name: str,
        *,
        key: str,
        storage_url: str | None = None,
        may_be_large: bool = True,
    ) -> Found | None:
        """The object, or None. Raises `UnavailableError` when the answer is not one of Swift's.

        Of what `may_be_large`, radosgw is asked for one byte: for a HEAD of a large object it reads all of
        its segments (2 s for 512 MiB). Swift takes no notice of that.
        """

        async def look(headers: Mapping[str, str], *accept: int) -> Answer:
            return await self.client.call(
                "HEAD",
                object_path(container, name),
                key=key,
                doing="looking at it",
                headers=headers,
                accept=accept,
                storage_url=storage_url,
            )

        answer, size = await look(_ONE_BYTE if may_be_large else {}, 404, 416), None
        if answer.status == 206:
            size = total_of(answer.headers.get("Content-Range"), first=0)
        if answer.status == 416 or (answer.status == 206 and size is None):
            answer = await look({}, 404)  # It is empty.
        if answer.status == 404:
            return None
        if answer.status != 206:
            length = answer.headers.get("Content-Length")
            size = int(length) if length is not None else None
        found = found_by(answer.headers, size)
        if not found.etag and not found.timestamp:  # Something on the way said 200.
            raise UnavailableError(
                f"{self.store}/{key}: the answer describes no object.", store=self.store, key=key
            )
        if found.size_bytes is None and found.dynamic is not None:
            segments = await self.dynamic_segments(found, key=key, storage_url=storage_url)
            found = found_by(answer.headers, sum(segment.size_bytes for segment in segments))
        return found

    async def put(
        self,
        container: str,
        name: str,
        *,
        key: str,
        doing: str,
        body: Callable[[], Body] | None = None,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        accept: tuple[int, ...] = (),
        answer_timeout_s: float | None = None,
    ) -> Answer:
        """Store an object, making the container first when it is missing and may be made."""
        is_last = not self._config.create_container
        while True:
            answer = await self.client.call(
                "PUT",
                object_path(container, name) + query,
                key=key,
                doing=doing,
                headers={**_CONTENT_TYPE, **(headers or {})},
                body=body,
                accept=(404, *accept),
                answer_timeout_s=answer_timeout_s,
            )
            if answer.status != 404 or 404 in accept:
                return answer
            if is_last:
                raise self._no_container(container, key)
            is_last = True
            await self._make_container(container, key)

    async def require_container(self, container: str, *, key: str) -> None:
        """Raise `NotFoundError` unless the container is there; make it when it may be made."""
        answer = await self.client.call(
            "HEAD", object_path(container), key=key, doing="looking at its container", accept=(404,)
        )
        if answer.status != 404:
            return
        if not self._config.create_container:
            raise self._no_container(container, key)
        await self._make_container(container, key)

    async def put_mark(self, container: str, name: str, *, token: str, key: str, create_only: bool) -> bool:
        """Store an empty object that names the token; False when `create_only` and it is there already."""
        headers = {TOKEN_HEADER: token}
        if create_only and await self.is_conditional(container, key=key):
            headers["If-None-Match"] = "*"
        elif create_only and await self.find(container, name, key=key, may_be_large=False) is not None:
            return False
        answer = await self.put(
            container, name, key=key, doing="marking the attempt", headers=headers, accept=(412,)
        )
        return answer.status != 412

    async def copy(
        self, source: Segment, container: str, name: str, *, key: str, account: str | None
    ) -> Segment:
        """Let the cluster copy an object. Raises `IntegrityError` when the copy is another one."""
        headers = {
            "X-Copy-From": quote(f"/{source.container}/{source.name}"),
            "X-Fresh-Metadata": "true",
        }
        if account is not None:
            headers["X-Copy-From-Account"] = quote(account, safe="")
        answer = await self.put(
            container,
            name,
            key=key,
            doing="copying inside the cluster",
            headers=headers,
            answer_timeout_s=LONG_ANSWER_S,
        )
        if answer.etag != source.etag:
            raise IntegrityError(
                f"{self.store}/{key}: the cluster's copy has another ETag than the source.",
                store=self.store,
                key=key,
            )
        return Segment(container=container, name=name, size_bytes=source.size_bytes, etag=answer.etag)

    async def put_manifest(
        self,
        container: str,
        name: str,
        segments: Sequence[Segment],
        *,
        key: str,
        headers: Mapping[str, str],
    ) -> Answer:
        """Make a static large object of the segments; the server compares the size and the ETag of each. Its
        answer is a success, or 412.
        """
        limits = await self.client.limits()
        manifest = json.dumps(
            [
                {
                    "path": f"/{segment.container}/{segment.name}",
                    "size_bytes": segment.size_bytes,
                    "etag": segment.etag,
                }
                for segment in segments
            ]
        ).encode()
        query = "?multipart-manifest=put" + ("&heartbeat=on" if limits.heartbeat else "")
        # The first blank comes at once: a server that misses three is dead.
        beats_s = max(self.client.stall_timeout_s, 3.0 * limits.heartbeat_s)
        answer = await self.client.call(
            "PUT",
            object_path(container, name) + query,
            key=key,
            doing="storing the manifest",
            headers={**_CONTENT_TYPE, "Accept": "application/json", **headers},
            body=partial(Pieces, [memoryview(manifest)], stall_timeout_s=self.client.stall_timeout_s),
            accept=(400, 404, 409, 412),
            answer_timeout_s=beats_s if limits.heartbeat else LONG_ANSWER_S,
        )
        if answer.status == 202:
            answer = _heartbeat_result(answer)
        if answer.status // 100 == 2 or answer.status == 412:
            return answer
        if answer.status in (400, 404, 409):
            raise StoreError(
                f"{self.store}/{key}: the store does not take the manifest ({answer.status}): segments are"
                " missing or are others than those that were sent.",
                store=self.store,
                key=key,
                hint="The attempt may have been cleared by another worker. Nothing was published.",
            )
        raise self.client.error(answer, key=key, doing="storing the manifest")

    async def is_conditional(self, container: str, *, key: str) -> bool:
        """Whether the server refuses a PUT with `If-None-Match: *` when there is something: Swift does,
        radosgw ignores it. Found out by trying.
        """
        if self._conditional is None:
            await to_the_end(self._try(container, key))
        return bool(self._conditional)

    async def try_putting(self, container: str, name: str, *, key: str) -> None:
        """Write an object, which expires by itself if it is not deleted, and see whether it would be
        replaced. Raises the error that says why it cannot be written.
        """
        headers = {"X-Delete-After": "300"}
        doing = "writing a small object"
        # Not an empty one: that fits into every quota.
        body = partial(Pieces, [memoryview(b"\n")], stall_timeout_s=self.client.stall_timeout_s)
        await self.put(container, name, key=key, doing=doing, body=body, headers=headers)
        headers["If-None-Match"] = "*"
        answer = await self.put(
            container, name, key=key, doing=doing, body=body, headers=headers, accept=(412,)
        )
        self._conditional = answer.status == 412

    async def _try(self, container: str, key: str) -> None:
        name = probe_name()
        try:
            await self.client.patiently(lambda: self.try_putting(container, name, key=key))
        finally:
            await self.client.patiently(lambda: self.delete_one(container, name, key=key))

    async def delete_one(self, container: str, name: str, *, key: str | None) -> bool:
        """Delete one object (of a large one, only the manifest); False when it was gone already."""
        answer = await self.client.call(
            "DELETE", object_path(container, name), key=key, doing="deleting", accept=(404,)
        )
        return answer.status != 404

    async def delete_many(self, container: str, names: Iterable[str], *, key: str) -> None:
        """Delete objects; those that are gone already are no error."""
        left = list(dict.fromkeys(names))
        limits = await self.client.limits()
        if limits.bulk_delete and len(left) >= _BULK_FROM:
            left = await self._delete_in_bulk(container, left, limits, key=key)
        turn = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def delete(name: str) -> None:
            async with turn:
                await self.client.patiently(lambda: self.delete_one(container, name, key=key))

        results = await asyncio.gather(*(delete(name) for name in left), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def remove(self, container: str, name: str, found: Found, *, key: str) -> None:
        """Delete an object with all its segments."""
        if found.dynamic is not None:
            segments = await self.dynamic_segments(found, key=key)
            if segments:
                names = [segment.name for segment in segments]
                await self.delete_many(segments[0].container, names, key=key)
            await self.delete_one(container, name, key=key)
        elif found.is_static_large:
            await self._remove_static(container, name, key=key)
        else:
            await self.delete_one(container, name, key=key)
        if found.is_static_large and found.token is not None:
            await self.clear_folder(container, key, found.token)

    async def clear_folder(self, container: str, key: str, token: str) -> None:
        """Delete all segments of a making, also those that no manifest names."""
        prefix = folder(key, token)
        names = [entry.name async for entry in self.client.listing(container, prefix, key=key)]
        await self.delete_many(container, names, key=key)

    async def dynamic_segments(
        self, found: Found, *, key: str, storage_url: str | None = None
    ) -> list[Segment]:
        """The segments of a dynamic large object, in their order. glance_store names them
        `<image id>-<number>`; what else begins like that belongs to others.
        """
        container, prefix = unquoted(found.dynamic or "")
        numbered = re.compile(re.escape(prefix) + r"\d{5,}")
        return [
            Segment(container=container, name=entry.name, size_bytes=entry.size_bytes, etag=entry.etag)
            async for entry in self.client.listing(container, prefix, key=key, storage_url=storage_url)
            if numbered.fullmatch(entry.name)
        ]

    async def manifest(
        self, container: str, name: str, *, key: str, storage_url: str | None = None
    ) -> list[dict[str, object]]:
        """The entries of a static large object's manifest; none when the server does not show them (radosgw).
        Raises ValueError when they cannot be understood.
        """
        path = object_path(container, name) + "?multipart-manifest=get"
        doing = "reading its manifest"
        async with self.client.open("GET", path, key=key, doing=doing, storage_url=storage_url) as response:
            text = await response.read() if response.status == 200 else b""
        entries = json.loads(text) if text else []
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise ValueError("a manifest is a list of objects")
        return entries

    async def folder_segments(
        self,
        container: str,
        key: str,
        token: str,
        *,
        storage_url: str | None = None,
        up_to_bytes: int | None = None,
    ) -> list[Segment]:
        """What the listing shows of the segments of a making, in the order of their numbers; `up_to_bytes`:
        no more than hold so much.
        """
        segments, size = [], 0
        listing = self.client.listing(container, folder(key, token), key=key, storage_url=storage_url)
        async with aclosing(listing):
            async for entry in listing:
                if segment_number(entry.name) is None:
                    continue
                segments.append(
                    Segment(
                        container=container, name=entry.name, size_bytes=entry.size_bytes, etag=entry.etag
                    )
                )
                size += entry.size_bytes
                if up_to_bytes is not None and size >= up_to_bytes:
                    break
        return segments

    async def _remove_static(self, container: str, name: str, *, key: str) -> None:
        """By the server, which knows the manifest: radosgw does not show it. The segments go first. Swift
        refuses more than 10 000 segments, in manifests of manifests: these are deleted one after the other.
        """
        answer = await self.client.call(
            "DELETE",
            object_path(container, name) + "?multipart-manifest=delete",
            key=key,
            doing="deleting it with its segments",
            headers={"Accept": "application/json"},
            accept=(404,),
            answer_timeout_s=LONG_ANSWER_S,
        )
        if answer.status == 404:
            return
        errors = _bulk_errors(self.store, key, answer)
        for where, _ in errors:
            other_container, other_name = unquoted(where)
            if (other_container, other_name) != (container, name):
                await self.delete_one(other_container, other_name, key=key)
        now = await self.find(container, name, key=key)
        if now is not None and not errors and _is_refused(answer):
            await self._remove_by_manifest(container, name, key=key)
            now = await self.find(container, name, key=key)
        if now is not None:
            if errors:
                reasons = "; ".join(sorted({reason for _, reason in errors}))
                raise UnavailableError(
                    f"{self.store}/{key}: the store did not delete all of it: {reasons[:200]}.",
                    store=self.store,
                    key=key,
                )
            raise UnavailableError(
                f"{self.store}/{key}: is still there after it was deleted.", store=self.store, key=key
            )

    async def _remove_by_manifest(self, container: str, name: str, *, key: str) -> None:
        segments: dict[str, set[str]] = {}
        manifests: set[tuple[str, str]] = set()
        for entry in await self.manifest(container, name, key=key):
            where, segment = unquoted(str(entry.get("name") or ""))
            if entry.get("sub_slo"):
                manifests.add((where, segment))
            elif segment:
                segments.setdefault(where, set()).add(segment)
        for where, manifest in sorted(manifests):
            await self._remove_static(where, manifest, key=key)
        for where, names in segments.items():
            await self.delete_many(where, names, key=key)
        await self.delete_one(container, name, key=key)

    async def _delete_in_bulk(
        self, container: str, names: Sequence[str], limits: Limits, *, key: str
    ) -> list[str]:
        """Returns what was not deleted so, for the caller to try by itself."""
        failed = []
        step = limits.deletes_per_request
        for at in range(0, len(names), step):
            some = names[at : at + step]
            text = "".join(f"{quote(container, safe='')}/{quote(name)}\n" for name in some).encode()
            answer = await self.client.call(
                "POST",
                "?bulk-delete",
                key=key,
                doing="deleting segments",
                headers={"Content-Type": "text/plain", "Accept": "application/json"},
                body=partial(Pieces, [memoryview(text)], stall_timeout_s=self.client.stall_timeout_s),
                accept=(400, 403, 404, 405, 413, 501),
                answer_timeout_s=LONG_ANSWER_S,
            )
            if answer.status // 100 != 2:
                return list(names[at:])
            failed += [unquoted(where)[1] for where, _ in _bulk_errors(self.store, key, answer)]
        return failed

    async def _make_container(self, container: str, key: str) -> None:
        await self.client.call(
            "PUT", object_path(container), key=key, doing=f"making the container {container!r}"
        )

    def _no_container(self, container: str, key: str) -> StoreError:
        return NotFoundError(
            f"{self.store}/{key}: the container {container!r} does not exist.",
            store=self.store,
            key=key,
            hint="Make it, or set create_container = true for the store.",
        )


def _heartbeat_result(answer: Answer) -> Answer:
    """The real answer, after the blanks that kept the connection alive."""
    try:
        result = json.loads(answer.text)
        status = int(str(result["Response Status"]).split(" ", 1)[0])
        headers = {"ETag": str(result.get("Etag") or "")}
        body = str(result.get("Response Body") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Answer(status=502, headers={}, text="the connection ended before the result")
    return Answer(status=status, headers=headers, text=body)


def _is_refused(answer: Answer) -> bool:
    """Whether a bulk request was not begun, though its answer is a success."""
    try:
        return str(json.loads(answer.text)["Response Status"]).startswith("400")
    except (ValueError, KeyError, TypeError):
        return False


def _bulk_errors(store: str, key: str, answer: Answer) -> list[tuple[str, str]]:
    """Path and reason of each object that a bulk request could not delete."""
    try:
        errors = json.loads(answer.text)["Errors"]
        return [(str(path), str(reason)) for path, reason in errors]
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"{store}/{key}: deleting: the store's answer cannot be understood.", store=store, key=key
        ) from error
