"""Where the campaign of network faults takes place: real servers, seen by our drivers through the proxy and
by this file without either.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import aiohttp
from aiobotocore.session import get_session
from aiohttp import web
from botocore.config import Config
from botocore.exceptions import ClientError

from dataplane.store import MIB
from dataplane.terms import Destination
from dataplane.transfer import transfer
from drivers.http.config import HttpConfig
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.registry import build_store, wrapped
from drivers.s3.config import S3Config
from drivers.secret import Secret
from drivers.swift.config import SwiftConfig
from tests.faults.campaign import OPTIONS, Ground, Operation, Setting, Target, driver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from dataplane.store import Driver
    from dataplane.terms import Engine
    from tests.services.endpoints import S3Endpoint, SwiftEndpoint


@asynccontextmanager
async def http_ground(place: Path) -> AsyncIterator[Ground]:
    """A web server with one file per size; only read."""
    served = place / "served"
    served.mkdir()
    app = web.Application()
    app.router.add_static("/", served)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ground = _HttpGround("http", "127.0.0.1", runner.addresses[0][1], place)
    for size_bytes in ground.sizes:
        (served / f"image-{size_bytes}").write_bytes(ground.data(size_bytes))
    try:
        yield ground
    finally:
        await runner.cleanup()


class _HttpGround(Ground):
    operations = (Operation.GET, Operation.COPY)

    def setting(
        self, operation: Operation, size_bytes: int, key: str, url: str, attempt: str, *, checked: bool
    ) -> Setting:
        port = int(url.rpartition(":")[2])
        config = HttpConfig(schemes=("http",), ports=(port,), allow_cidrs=("127.0.0.0/8",))
        destination, target = self.file_target(key, attempt)
        destinations, targets = [destination], [target]
        if operation is Operation.COPY:
            memory = MemoryDriver("memory", MemoryConfig(), OPTIONS)
            store = driver(wrapped(memory, OPTIONS))
            destinations.append(Destination(store=store, key=key, attempt=attempt))
            targets.append(_MemoryTarget(memory, key))
        return Setting(
            source=build_store("web", "http", config, OPTIONS),
            key=f"{url}/image-{size_bytes}",
            destinations=destinations,
            targets=targets,
        )


class _MemoryTarget(Target):
    def __init__(self, memory: MemoryDriver, key: str) -> None:
        self._memory = memory
        self._key = key

    async def content(self) -> bytes | None:
        stored = self._memory._objects.get(self._key)
        return None if stored is None else bytes(stored.data)

    async def leftovers(self) -> list[str]:
        return sorted(self._memory.names - {self._key})


class _ObjectGround(Ground):
    """A store with two containers: one holds the sources, and what is put; the other takes the copies."""

    at_once = 5
    containers: tuple[str, str]

    def store(self, url: str, container: str, *, checked: bool) -> Driver:
        raise NotImplementedError

    def target(self, container: str, key: str) -> Target:
        raise NotImplementedError

    async def fill(self, engine: Engine) -> None:
        """Put the sources there, by our driver and without a proxy."""
        store = self.store(f"http://{self.host}:{self.port}", self.containers[0], checked=True)
        try:
            for size_bytes in self.sizes:
                self.keys[size_bytes] = key = str(uuid.uuid4())
                disk, name = self.file_source(size_bytes)
                await transfer(
                    disk, name, [Destination(store=store, key=key)], engine=engine, digests=("sha256",)
                )
                await disk.aclose()
        finally:
            await store.aclose()

    def __init__(self, name: str, host: str, port: int, place: Path) -> None:
        super().__init__(name, host, port, place)
        self.keys: dict[int, str] = {}

    async def names(self, container: str) -> list[str]:
        """Everything that lies there."""
        raise NotImplementedError

    async def strays(self, keys: set[str]) -> list[str]:
        known = {*keys, *self.keys.values()}
        return [
            f"{container}/{name}"
            for container in self.containers
            for name in await self.names(container)
            if not any(key in name for key in known)
        ]

    def setting(
        self, operation: Operation, size_bytes: int, key: str, url: str, attempt: str, *, checked: bool
    ) -> Setting:
        first, second = self.containers
        if operation is Operation.PUT:
            source, source_key = self.file_source(size_bytes)
        else:
            source, source_key = self.store(url, first, checked=checked), self.keys[size_bytes]
        if operation is Operation.GET:
            destination, target = self.file_target(key, attempt)
        else:
            container = first if operation is Operation.PUT else second
            store = self.store(url, container, checked=checked)
            destination = Destination(store=store, key=key, attempt=attempt)
            target = self.target(container, key)
        return Setting(source=source, key=source_key, destinations=[destination], targets=[target])


@asynccontextmanager
async def s3_ground(endpoint: S3Endpoint, place: Path, engine: Engine) -> AsyncIterator[Ground]:
    """Two buckets of our own, which must be empty of all but whole images in the end."""
    options = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5})
    async with get_session().create_client(
        "s3",
        endpoint_url=endpoint.url,
        region_name=endpoint.region,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        config=options,
    ) as client:
        ground = _S3Ground(endpoint, place, client)
        for bucket in ground.containers:
            await client.create_bucket(Bucket=bucket)
        try:
            await ground.fill(engine)
            yield ground
        finally:
            for bucket in ground.containers:
                await _remove_bucket(client, bucket)


async def _remove_bucket(client: Any, bucket: str) -> None:
    """With all that is in it; what a server does late is waited for."""
    async with asyncio.timeout(60):
        while True:
            for upload in await _uploads(client, bucket):
                with suppress(client.exceptions.NoSuchUpload):
                    await client.abort_multipart_upload(
                        Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
            for key in await _objects(client, bucket):
                await client.delete_object(Bucket=bucket, Key=key)
            try:
                await client.delete_bucket(Bucket=bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] != "BucketNotEmpty":
                    raise
                await asyncio.sleep(0.5)
            else:
                return


async def _uploads(client: Any, bucket: str) -> list[Mapping[str, str]]:
    said = await client.list_multipart_uploads(Bucket=bucket)
    return list(said.get("Uploads", []))


async def _objects(client: Any, bucket: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [one["Key"] async for page in pages for one in page.get("Contents", [])]


class _S3Ground(_ObjectGround):
    sizes = (300_000, 5 * MIB + 300_007)

    def __init__(self, endpoint: S3Endpoint, place: Path, client: Any) -> None:
        where = urlsplit(endpoint.url)
        super().__init__("s3", where.hostname or "", where.port or 80, place)
        self._endpoint = endpoint
        self._client = client
        own = uuid.uuid4().hex[:8]
        self.containers = (f"faults-{own}-a", f"faults-{own}-b")
        self.secrets = (endpoint.secret_key,)

    def store(self, url: str, container: str, *, checked: bool) -> Driver:
        config = S3Config(
            endpoint=url,
            bucket=container,
            access_key=self._endpoint.access_key,
            secret_key=Secret(self._endpoint.secret_key),
            region=self._endpoint.region,
            addressing="path",
            multipart_threshold_bytes=5 * MIB,
            part_bytes=5 * MIB,
            part_attempts=3,
            part_check="md5" if checked else "auto",
        )
        return driver(build_store(container, "s3", config, OPTIONS))

    async def names(self, container: str) -> list[str]:
        uploads = await _uploads(self._client, container)
        return [*await _objects(self._client, container), *(upload["Key"] for upload in uploads)]

    def target(self, container: str, key: str) -> Target:
        return _S3Target(self._client, container, key)


class _S3Target(Target):
    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key

    async def content(self) -> bytes | None:
        try:
            said = await self._client.get_object(Bucket=self._bucket, Key=self._key)
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
        async with said["Body"] as body:
            data = await body.read()
            assert isinstance(data, bytes)
            return data

    async def leftovers(self) -> list[str]:
        objects = await _objects(self._client, self._bucket)
        uploads = await _uploads(self._client, self._bucket)
        return [
            *(key for key in objects if self._key in key and key != self._key),
            *(f"upload {one['UploadId']} of {one['Key']}" for one in uploads if self._key in one["Key"]),
        ]


@asynccontextmanager
async def swift_ground(endpoint: SwiftEndpoint, place: Path, engine: Engine) -> AsyncIterator[Ground]:
    """Two containers of our own, by version 1 of the authentication: its storage URL follows the Host
    header, and so leads through the proxy.
    """
    async with aiohttp.ClientSession(trust_env=False) as session:
        login = {"X-Auth-User": endpoint.user, "X-Auth-Key": endpoint.key}
        async with session.get(endpoint.auth_url, headers=login) as answer:
            answer.raise_for_status()
            account = _Account(session, answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"])
        ground = _SwiftGround(endpoint, place, account)
        for container in ground.containers:
            await account.ask("PUT", container)
        try:
            await ground.fill(engine)
            yield ground
        finally:
            for container in ground.containers:
                await account.remove(container)


MANIFEST = {"multipart-manifest": "get"}


class _Account:
    """Plain Swift, one request at a time."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = url
        self._token = token

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        missing_ok: bool = False,
    ) -> tuple[bytes, Mapping[str, str]] | None:
        headers = {"X-Auth-Token": self._token}
        url = f"{self._url}/{quote(path)}"
        async with self._session.request(method, url, params=query, headers=headers) as answer:
            if missing_ok and answer.status == 404:
                return None
            answer.raise_for_status()
            return await answer.read(), answer.headers

    async def remove(self, container: str) -> None:
        """With all that is in it; a listing that is late is waited for."""
        async with asyncio.timeout(60):
            while names := await self._listed(container):
                for name in names:
                    await self.ask("DELETE", f"{container}/{name}", missing_ok=True)
        await self.ask("DELETE", container)

    async def names(self, container: str, *, having: str = "") -> list[str]:
        """What is there, and not only in a listing that is late, and does not expire by itself."""
        names = []
        for name in await self._listed(container):
            if having in name:
                head = await self.ask("HEAD", f"{container}/{name}", MANIFEST, missing_ok=True)
                if head is not None and "X-Delete-At" not in head[1]:
                    names.append(name)
        return names

    async def _listed(self, container: str) -> list[str]:
        said = await self.ask("GET", container)
        return said[0].decode().split() if said is not None else []


class _SwiftGround(_ObjectGround):
    sizes = (300_000, 3 * MIB + 7)

    def __init__(self, endpoint: SwiftEndpoint, place: Path, account: _Account) -> None:
        where = urlsplit(endpoint.auth_url)
        super().__init__("swift", where.hostname or "", where.port or 80, place)
        self._endpoint = endpoint
        self._account = account
        own = uuid.uuid4().hex[:8]
        self.containers = (f"faults-{own}-a", f"faults-{own}-b")
        self.secrets = (endpoint.key,)

    def store(self, url: str, container: str, *, checked: bool) -> Driver:
        config = SwiftConfig(
            container=container,
            auth_url=f"{url}{urlsplit(self._endpoint.auth_url).path}",
            auth_version="1",
            user=self._endpoint.user,
            key=Secret(self._endpoint.key),
            segment_bytes=MIB,
            check_segments=checked,
        )
        return driver(build_store(container, "swift", config, OPTIONS))

    async def names(self, container: str) -> list[str]:
        return await self._account.names(container)

    def target(self, container: str, key: str) -> Target:
        return _SwiftTarget(self._account, container, key)


class _SwiftTarget(Target):
    def __init__(self, account: _Account, container: str, key: str) -> None:
        self._account = account
        self._container = container
        self._key = key

    async def content(self) -> bytes | None:
        said = await self._account.ask("GET", f"{self._container}/{self._key}", missing_ok=True)
        return None if said is None else said[0]

    async def leftovers(self) -> list[str]:
        path = f"{self._container}/{self._key}"
        head = await self._account.ask("HEAD", path, missing_ok=True)
        own = {self._key}
        if head is not None and head[1].get("X-Static-Large-Object", "").lower() == "true":
            said = await self._account.ask("GET", path, {**MANIFEST, "format": "raw"})
            own |= _segments(said[0] if said is not None else b"")
        names = await self._account.names(self._container, having=self._key)
        return [name for name in names if name not in own]


def _segments(manifest: bytes) -> set[str]:
    """Names, without their container, of what a static large object consists of."""

    return {str(one["path"]).lstrip("/").partition("/")[2] for one in json.loads(manifest)}
