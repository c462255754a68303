"""Staging areas in real stores: an import into a store of the same kind is done by the service itself."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from control.config import StoreSettings
from dataplane.store import MIB
from drivers.options import StoreOptions
from tests.conformance.stores import fresh_rbd, fresh_s3, fresh_swift
from tests.integration.in_process import Place, running, short_directory
from tests.integration.v2_client import new_image, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from control.config import Settings
    from tests.integration.in_process import Daemon
    from tests.services.ceph import Ceph

CONTENT = random.Random(2).randbytes(9 * MIB + 77)
SHA512 = hashlib.sha512(CONTENT).hexdigest()
METHODS = {"s3": "CopyObject", "rbd": "rbd clone", "swift": "swift copy"}


@dataclass(slots=True)
class RealPlace(Place):
    """With two more stores of that type: `aside`, where images are staged, and `real`."""

    kind: str = ""
    aside: object = None
    real: object = None

    def settings(self) -> Settings:
        settings = Place.settings(self)
        options = StoreOptions(stall_timeout_s=60.0)
        more = {
            name: StoreSettings(id=name, type=self.kind, options=options, config=config)
            for name, config in (("aside", self.aside), ("real", self.real))
        }
        return replace(settings, stores={**settings.stores, **more})


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


async def staged(daemon: Daemon) -> str:
    image_id = await new_image(daemon)
    headers = {"Content-Type": "application/octet-stream"}
    reply = await daemon.call("PUT", f"/v2/images/{image_id}/stage", raw=CONTENT, headers=headers)
    assert reply.status == 204, reply.body
    return image_id


async def imported(daemon: Daemon, *stores: str) -> tuple[str, dict[str, Any]]:
    """An image that was staged and imported; its id and what its job did."""
    image_id = await staged(daemon)
    body = {"method": {"name": "glance-direct"}, "stores": list(stores)}
    assert (await daemon.call("POST", f"/v2/images/{image_id}/import", body)).status == 202
    await until(daemon, image_id, status="active", os_hash_value=SHA512, stores=",".join(sorted(stores)))
    got = await daemon.call("GET", f"/v2/images/{image_id}/file")
    assert (got.status, got.body) == (200, CONTENT)
    (job,) = (await daemon.get(f"/v1/jobs?image_id={image_id}&kind=fill"))["jobs"]
    return image_id, job["report"]


async def until_empty(names: Callable[[], Any]) -> None:
    """Wait until nothing is staged any more."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(names):  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.2)


async def until_up(daemon: Daemon, store: str) -> None:
    """Its service may have stood still when it was looked at first."""
    async with asyncio.timeout(100):
        while (await daemon.call("POST", f"/v1/stores/{store}/check")).json["health"]["state"] != "up":  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.5)


@pytest.mark.service("ceph")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["s3", "swift", "rbd"])
async def test_what_is_staged_in_a_real_store_is_imported_and_removed(
    ceph: Ceph, root: Path, kind: str
) -> None:
    async with AsyncExitStack() as stack:
        made = {
            "rbd": lambda: fresh_rbd(ceph),
            "s3": lambda: fresh_s3(ceph.s3),
            "swift": lambda: fresh_swift(ceph.swift),
        }
        fresh = await stack.enter_async_context(made[kind]())
        assert fresh.partner is not None
        place = RealPlace(
            root,
            images={"staging_store": "aside"},
            kind=kind,
            aside=vars(fresh.driver)["_config"],
            real=vars(fresh.partner)["_config"],
        )
        daemon = await stack.enter_async_context(running(place))
        for store in ("aside", "real"):
            await until_up(daemon, store)
        first, report = await imported(daemon, "real")
        assert [step["method"] for step in report["steps"]] == [METHODS[kind], "catalogue"]
        assert report["bytes_read"] == 0
        await until_empty(fresh.names)
        second, report = await imported(daemon, "one", "real")
        assert {step["method"] for step in report["steps"]} == {"stream", METHODS[kind], "catalogue"}
        assert report["bytes_read"] == len(CONTENT)  # For `one`.
        await until_empty(fresh.names)
        for image_id in (first, second):
            got = await daemon.call("GET", f"/v2/images/{image_id}/file")
            assert got.body == CONTENT
        kept = await staged(daemon)
        assert await asyncio.to_thread(fresh.names)
        assert (await daemon.call("DELETE", f"/v2/images/{kept}")).status == 204
        await until_empty(fresh.names)
        for image_id in (first, second):
            assert (await daemon.call("DELETE", f"/v2/images/{image_id}")).status == 204
            (job,) = (await daemon.get(f"/v1/jobs?image_id={image_id}&kind=delete&limit=1"))["jobs"]
            assert (await daemon.finished(job))["state"] == "succeeded"
