"""What a probe says of a bucket that can be read and not written, on a real gateway."""

from __future__ import annotations

import itertools
import json
import secrets
import subprocess
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from dataplane.errors import AccessDeniedError, StalledError, StoreFullError, UnavailableError
from dataplane.store import StoreSpace
from drivers.options import StoreOptions
from drivers.s3 import health
from drivers.s3.config import S3Config
from drivers.s3.driver import S3Driver
from drivers.secret import Secret
from tests.conformance.images import read_image, write_image
from tests.fakes.fault_proxy import Fault, FaultProxy, Kind
from tests.services.s3_bucket import Bucket, bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint

pytestmark = [pytest.mark.service("ceph"), pytest.mark.timeout(400)]

KEY = "3f7c1d2e-0000-4000-8000-00000000000b"

_users = itertools.count(1)


@pytest.fixture(autouse=True)
def patient_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway may stand still for longer than a look may take."""
    for clock in ("_CLOCK_S", "_LEARNING_S", "_REMOVING_S"):
        monkeypatch.setattr(health, clock, 60.0)


@pytest.fixture
def place(ceph: Ceph) -> Iterator[Place]:
    with user(ceph) as (name, endpoint), bucket(endpoint) as made:
        yield Place(ceph, name, endpoint, made)


class Place:
    """A bucket of a user of its own, whose rights the test may take away."""

    def __init__(self, ceph: Ceph, name: str, endpoint: S3Endpoint, made: Bucket) -> None:
        self._ceph = ceph
        self._name = name
        self.endpoint = endpoint
        self.bucket = made

    @contextmanager
    def read_only(self) -> Iterator[None]:
        admin(self._ceph, "user", "modify", f"--uid={self._name}", "--op-mask=read")
        try:
            yield
        finally:
            admin(self._ceph, "user", "modify", f"--uid={self._name}", "--op-mask=read,write,delete")

    @contextmanager
    def full(self) -> Iterator[None]:
        quota = ("--quota-scope=user", f"--uid={self._name}")
        admin(self._ceph, "quota", "set", *quota, "--max-size=0")
        admin(self._ceph, "quota", "enable", *quota)
        try:
            yield
        finally:
            admin(self._ceph, "quota", "disable", *quota)

    @asynccontextmanager
    async def driver(self, url: str | None = None, *, read_only: bool = False) -> AsyncIterator[S3Driver]:
        config = S3Config(
            endpoint=url or self.endpoint.url,
            region=self.endpoint.region,
            access_key=self.endpoint.access_key,
            secret_key=Secret(self.endpoint.secret_key),
            bucket=self.bucket.name,
            addressing="path",
        )
        driver = S3Driver("s3", config, StoreOptions(stall_timeout_s=60, read_only=read_only))
        try:
            yield driver
        finally:
            await driver.aclose()


@contextmanager
def user(ceph: Ceph) -> Iterator[tuple[str, S3Endpoint]]:
    name = f"health-{next(_users)}"
    endpoint = replace(ceph.s3, access_key=secrets.token_hex(8), secret_key=secrets.token_hex(16))
    keys = (f"--access-key={endpoint.access_key}", f"--secret={endpoint.secret_key}")
    admin(ceph, "user", "create", f"--uid={name}", f"--display-name={name}", *keys)
    try:
        yield name, endpoint
    finally:
        admin(ceph, "user", "rm", f"--uid={name}", "--purge-data")


def admin(ceph: Ceph, *words: str) -> object:
    command = ["radosgw-admin", "-c", str(ceph.conf), "-n", "client.rgw.a", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.lstrip().startswith("{") else done.stdout


async def test_a_bucket_that_takes_images_is_well_and_keeps_nothing(place: Place) -> None:
    async with place.driver() as driver:
        assert await driver.probe() == StoreSpace()
        assert await driver.probe() == StoreSpace()
    assert place.bucket.names() == set()


async def test_who_may_only_read_can_still_read(place: Place) -> None:
    async with place.driver() as driver, place.driver(read_only=True) as reader:
        await write_image(driver, KEY, b"x")
        with place.read_only():
            space = await driver.probe()
            assert isinstance(space.add_error, AccessDeniedError)
            assert isinstance(space.delete_error, AccessDeniedError)
            assert "may not do this in the bucket" in space.add_error.hint
            assert (await read_image(driver, KEY)).data == b"x"
            assert await reader.probe() == StoreSpace()
        assert await driver.probe() == StoreSpace()
    assert place.bucket.names() == {KEY}


async def test_a_full_store_is_only_closed_for_adding(place: Place) -> None:
    async with place.driver() as driver:
        await write_image(driver, KEY, b"x")
        with place.full():
            space = await driver.probe()
            assert isinstance(space.add_error, StoreFullError)
            assert space.delete_error is None
            with pytest.raises(StoreFullError):
                await write_image(driver, "other", b"x")
            await driver.delete(KEY)
        assert await driver.probe() == StoreSpace()
    assert place.bucket.names() == set()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(kind=Kind.SILENCE, method="POST", times=None, seconds=None), StalledError),
        (Fault(kind=Kind.UNAVAILABLE_503, method="POST", times=None), UnavailableError),
        (Fault(kind=Kind.LOST_ANSWER, method="PUT", times=None), UnavailableError),
    ],
    ids=["silence", "unavailable", "lost-answer"],
)
async def test_a_service_that_only_fails_to_write_can_be_read(
    place: Place, fault: Fault, expected: type[UnavailableError], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(place.endpoint.url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 80, fault) as proxy,
        place.driver(proxy.url) as driver,
    ):
        with monkeypatch.context() as patch:
            if fault.kind is Kind.SILENCE:
                patch.setattr(health, "_CLOCK_S", 4.0)
            space = await driver.probe()
        assert type(space.add_error) is expected
        assert type(space.delete_error) is expected
        await proxy.heal()
        assert await driver.probe() == StoreSpace()
    assert place.bucket.names() == set()


async def test_what_a_look_found_out_no_image_has_to_find_out(place: Place) -> None:
    parts = urlsplit(place.endpoint.url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 80) as proxy,
        place.driver(proxy.url) as driver,
    ):
        await driver.probe()
        seen = len(proxy.exchanges)
        await write_image(driver, KEY, b"x")
        assert not [one.target for one in proxy.exchanges[seen:] if "probe" in one.target]


async def test_what_an_earlier_look_left_goes_with_a_later_one(place: Place) -> None:
    """An upload at once: nobody else uses its key for long."""
    client, name = place.bucket.client, place.bucket.name
    client.create_multipart_upload(Bucket=name, Key=".glissade/probe")
    async with place.driver() as driver:
        assert await driver.probe() == StoreSpace()
    assert place.bucket.names() == set()


async def test_what_somebody_left_who_was_killed_while_learning_goes_when_it_is_old(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, name = place.bucket.client, place.bucket.name
    async with place.driver() as driver:
        await driver.probe()
        client.put_object(Bucket=name, Key=".glissade/probe-0123", Body=b"left")
        await driver.probe()
        assert place.bucket.names() == {".glissade/probe-0123"}  # It may be another node's, now.
        monkeypatch.setattr("drivers.s3.health._STRAY_AFTER", timedelta(seconds=-60))
        await driver.probe()
    assert place.bucket.names() == set()
