"""One bucket over the wire: aiobotocore for the small requests and for signing, our own connections for
bodies.

aiobotocore's `upload_part` costs 2.2 times what the same request costs by a presigned URL over aiohttp, and
wants the whole part in one bytearray. So bodies go by URLs that it signs (SigV4, payload unsigned: over plain
http nobody computes a SHA-256 of an image, over https TLS protects it).
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiobotocore.config
import aiobotocore.session

from dataplane.errors import NotFoundError, StoreError, UnavailableError
from drivers.blocking import run_blocking
from drivers.s3.errors import PreconditionError, UploadGoneError, client_errors, refusal_in_body
from drivers.wire import Body, exchange, open_session, read_text, tls_context, wire_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from drivers.options import StoreOptions
    from drivers.s3.config import S3Config

_PRESIGNED_FOR_S: Final = 3600
_LONG: Final = frozenset({"complete_multipart_upload", "copy_object", "upload_part_copy"})
"""What may take a service as long as the stall time-out. The rest is quick, and tried again within it."""
_ANY_REGION: Final = "us-east-1"
"""What requests are signed for when no region is configured; services that have none accept it."""
MADE_BY: Final = "glissade-id"
ATTEMPT: Final = "glissade-attempt"
"""User metadata of objects: which writing made it (a random name), and for which attempt."""

_VERSION: Final = " version="
_TOTAL = re.compile(r"bytes (?:\d+-\d+|\*)/(\d{1,19})")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Object:
    """What the headers of an answer say about an object. `made_by` names the writing that made it, when that
    was one of ours.
    """

    size_bytes: int
    etag: str
    modified: str
    version: str
    made_by: str | None

    @property
    def identity(self) -> str:
        """Two objects with the same one are the same. An ETag alone is not enough: it is the MD5 of the
        bytes, and an image that was deleted and stored again has the same one.
        """
        mark = f"id={self.made_by}" if self.made_by is not None else f"modified={self.modified}"
        return f"{self.etag} {mark}{f'{_VERSION}{self.version}' if self.version else ''}"


def etag_of(identity: str) -> str:
    return identity.partition(" ")[0]


def version_of(identity: str) -> str:
    """Empty where the bucket has no versions."""
    return identity.rpartition(_VERSION)[2] if _VERSION in identity else ""


def object_of(headers: Mapping[str, str]) -> S3Object:
    """Headers with names in lower case, or a mapping that does not mind."""
    total = _TOTAL.fullmatch(headers.get("content-range", "").strip())
    version = headers.get("x-amz-version-id", "")
    return S3Object(
        size_bytes=int(total[1] if total else headers.get("content-length", "0")),
        etag=headers.get("etag", "").strip().removeprefix("W/").strip('"'),
        modified=headers.get("last-modified", ""),
        version="" if version == "null" else version,
        made_by=headers.get(f"x-amz-meta-{MADE_BY}"),
    )


class Answer(dict[str, Any]):
    """What botocore read from an answer. What is missing was not in it: then the answer is not S3's, whatever
    its status, and that may pass.
    """

    def __init__(self, found: Mapping[str, Any], *, store: str, key: str | None, doing: str) -> None:
        super().__init__(found)
        self._store = store
        self._key = key
        self._doing = doing

    def __missing__(self, name: str) -> Any:
        raise self.nonsense()

    @property
    def status(self) -> int:
        return int(self["ResponseMetadata"]["HTTPStatusCode"])

    @property
    def headers(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self["ResponseMetadata"]["HTTPHeaders"]
        return found

    def described_object(self) -> S3Object:
        found = object_of(self.headers)
        if not found.etag:
            raise self.nonsense()
        return found

    def nonsense(self) -> UnavailableError:
        where = self._store if self._key is None else f"{self._store}/{self._key}"
        return UnavailableError(
            f"{where}: {self._doing}: the answer is not S3's.", store=self._store, key=self._key
        )


class S3Service:
    """The bucket of one store. Shared state: the connections, opened by the first request and closed by
    `aclose`.
    """

    def __init__(self, store: str, config: S3Config, options: StoreOptions) -> None:
        self.store = store
        self.bucket = config.bucket
        self._config = config
        self._options = options
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._clients: dict[bool, Any] = {}
        self._session: aiohttp.ClientSession | None = None

    async def call(self, operation: str, *, key: str | None, doing: str, **parameters: object) -> Answer:
        """One operation of S3 on this bucket, by its name in botocore (`head_object`). Raises the typed error
        of what went wrong; `doing` is for its message. Nothing is tried again here.
        """
        return await self._call(operation, self.bucket, key, doing, parameters)

    async def _call(
        self, operation: str, bucket: str, key: str | None, doing: str, parameters: Mapping[str, object]
    ) -> Answer:
        await self._open()
        with client_errors(self.store, key, doing):
            client = self._clients[operation in _LONG]
            found = await getattr(client, operation)(Bucket=bucket, **parameters)
        return Answer(found, store=self.store, key=key, doing=doing)

    async def head(self, key: str, *, object_key: str | None = None) -> S3Object | None:
        """What is stored under the key, None when nothing is."""
        try:
            answer = await self.call("head_object", key=key, doing="looking at it", Key=object_key or key)
        except NotFoundError:
            return None
        return answer.described_object()

    async def head_elsewhere(self, bucket: str, key: str) -> S3Object | None:
        """As `head`, in another bucket of the same service, with this store's keys."""
        doing = f"looking at it in the bucket {bucket}"
        try:
            answer = await self._call("head_object", bucket, key, doing, {"Key": key})
        except NotFoundError:
            return None
        return answer.described_object()

    async def delete(self, key: str, *, object_key: str | None = None, etag: str | None = None) -> None:
        """Delete the object; it need not exist. With `etag` only if it is that one, where the service knows
        the condition: raises `PreconditionError`.
        """
        condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
        place = object_key or key
        try:
            answer = await self.call("delete_object", key=key, doing="deleting it", Key=place, **condition)
        except StoreError as error:
            if not condition or error.retryable or type(error) not in (StoreError, PreconditionError):
                raise
            if isinstance(error, PreconditionError):
                found = await self.head(key, object_key=place)
                if found is None or found.etag != etag:
                    raise
            # No conditional delete, or (Swift, of objects in parts) one that compares another ETag than it
            # shows: the look just before has to do.
            answer = await self.call("delete_object", key=key, doing="deleting it", Key=place)
        if answer.status != 204 and await self.head(key, object_key=place) is not None:
            raise answer.nonsense()

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Give up a multipart upload; it need not exist any more. Parts that were on their way may arrive
        after the first try, so it is repeated until nothing is left.
        """
        for _ in range(5):
            try:
                await self.call(
                    "abort_multipart_upload",
                    key=key,
                    doing="giving up its upload",
                    Key=key,
                    UploadId=upload_id,
                )
                left = await self.call(
                    "list_parts", key=key, doing="looking for its parts", Key=key, UploadId=upload_id
                )
            except (UploadGoneError, NotFoundError):
                return
            if not left.get("Parts"):
                return
            await asyncio.sleep(0.2)

    async def presigned(self, operation: str, *, key: str, **parameters: object) -> str:
        """A URL for one request; the headers that belong to the parameters must go with it."""
        await self._open()
        with client_errors(self.store, key, "signing a request"):
            url = await self._clients[False].generate_presigned_url(
                operation,
                Params={"Bucket": self.bucket, "Key": key, **parameters},
                ExpiresIn=_PRESIGNED_FOR_S,
            )
        return str(url)

    async def put(
        self,
        url: str,
        body: Body,
        *,
        key: str,
        doing: str,
        headers: Mapping[str, str],
        answer_timeout_s: float | None = None,
    ) -> Mapping[str, str]:
        """Send a body; returns the headers of the answer. Raises the typed error of what went wrong."""
        session = await self._open()
        with wire_errors(self.store, key, doing):
            async with exchange(
                session, "PUT", url, headers=headers, body=body, answer_timeout_s=answer_timeout_s
            ) as response:
                text = await read_text(response)
                if response.status not in (200, 201, 204):
                    raise refusal_in_body(
                        self.store,
                        key,
                        doing,
                        status=response.status,
                        body=text,
                        retry_after=response.headers.get("Retry-After"),
                    )
                return response.headers

    @asynccontextmanager
    async def get(
        self, key: str, *, headers: Mapping[str, str], fresh_connection: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a GET, whose status the caller looks at; the body is still to be read."""
        url = await self.presigned("get_object", key=key)
        shared = await self._open()
        async with AsyncExitStack() as stack:
            session = shared
            if fresh_connection:
                session = await stack.enter_async_context(
                    await self._new_session(connections=1, keepalive_s=0)
                )
            with wire_errors(self.store, key, "opening it"):
                response = await stack.enter_async_context(exchange(session, "GET", url, headers=headers))
            try:
                yield response
            finally:
                response.close()  # Does nothing to a connection whose answer was read to its end.

    @property
    def stall_timeout_s(self) -> float:
        return self._options.stall_timeout_s

    async def aclose(self) -> None:
        async with self._opening:
            self._clients, self._session = {}, None
            await self._stack.aclose()

    async def _open(self) -> aiohttp.ClientSession:
        if self._session is not None:
            return self._session
        async with self._opening:
            if self._session is None:
                async with AsyncExitStack() as stack:
                    # First of all: it tells what is wrong with a ca_file.
                    session = await stack.enter_async_context(
                        await self._new_session(
                            connections=self._connections, keepalive_s=self._config.keepalive_s
                        )
                    )
                    descriptions = await run_blocking(_descriptions)
                    stall_timeout_s = self._options.stall_timeout_s
                    for is_long, read_timeout_s in ((False, stall_timeout_s / 3), (True, stall_timeout_s)):
                        self._clients[is_long] = await stack.enter_async_context(
                            self._make_client(descriptions, read_timeout_s=read_timeout_s)
                        )
                    self._stack = stack.pop_all()
                    self._session = session
        return self._session

    @property
    def _connections(self) -> int:
        per_transfer = max(self._config.parts_in_flight, self._config.read_streams) + 1
        return 2 * self._options.concurrency * per_transfer  # As many again are for what comes from outside.

    async def _new_session(self, *, connections: int, keepalive_s: float) -> aiohttp.ClientSession:
        tls = None
        if self._config.endpoint.startswith("https:"):
            tls = await tls_context(self.store, self._config.ca_file)
        return open_session(
            tls=tls,
            connections=connections,
            connect_timeout_s=self._options.connect_timeout_s,
            stall_timeout_s=self._options.stall_timeout_s,
            keepalive_s=keepalive_s,
        )

    def _make_client(self, session: aiobotocore.session.AioSession, *, read_timeout_s: float) -> Any:
        config, options = self._config, self._options
        keepalive: dict[str, object] = {"keepalive_timeout": config.keepalive_s}
        if config.keepalive_s == 0:
            keepalive = {"force_close": True, "keepalive_timeout": None}
        return session.create_client(
            "s3",
            endpoint_url=config.endpoint,
            region_name=config.region or _ANY_REGION,
            aws_access_key_id=config.access_key,
            aws_secret_access_key=config.secret_key.reveal(),
            # Without TLS no authorities are read: it would be done on the event loop.
            verify=(config.ca_file or True) if config.endpoint.startswith("https:") else False,
            config=aiobotocore.config.AioConfig(
                connector_args=keepalive,
                signature_version="s3v4",
                connect_timeout=options.connect_timeout_s,
                read_timeout=read_timeout_s,
                max_pool_connections=self._connections,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1, "mode": "standard"},
                proxies={},
                s3={"addressing_style": config.addressing, "payload_signing_enabled": False},
            ),
        )


@functools.cache
def _descriptions() -> aiobotocore.session.AioSession:
    """botocore with its description of S3 read already: 0.1 s for which no event loop waits."""
    session = aiobotocore.session.AioSession()
    # The daemon's configuration counts, not what some user's home holds.
    session.set_config_variable("config_file", os.devnull)
    session.set_config_variable("credentials_file", os.devnull)
    loader = session.get_component("data_loader")
    loader.load_service_model("s3", "service-2")
    loader.load_service_model("s3", "endpoint-rule-set-1")
    for name in ("endpoints", "partitions", "_retry", "sdk-default-configuration"):
        loader.load_data(name)
    return session
