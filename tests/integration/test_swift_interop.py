"""A real glance_store and we share containers of a Swift whose users are Keystone's: it knows no other."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dataplane.measure import measure
from dataplane.store import MIB
from drivers.location import key_of_location
from drivers.options import StoreOptions
from drivers.swift.config import SwiftConfig
from drivers.swift.driver import SwiftDriver
from tests.integration import glance_store
from tests.integration.glance_store import DIGESTS, Peer, import_image, write_image
from tests.integration.interop_suite import InteropSuite, SharedStore, settings_of
from tests.services import foreign

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from dataplane.terms import Engine
    from tests.services.endpoints import SwiftEndpoint

MISSING = glance_store.MISSING or foreign.swift_unavailable()
pytestmark = [
    pytest.mark.service("glance_store"),
    pytest.mark.service("swift"),
    pytest.mark.service("keystone"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

MEGABYTE = 1000 * 1024
"""What glance_store counts in. It cannot write a large object whose last segment is not full."""

REFERENCE = """\
[ref1]
user = {project}:{user}
key = {key}
auth_address = {auth_url}
auth_version = 3
user_domain_name = {user_domain}
project_domain_name = {project_domain}
"""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a test class, and the glance_store that uses it."""

    endpoint: SwiftEndpoint
    name: str
    reference: Path
    """What glance_store's `swift_store_config_file` names, and our `reference_file`."""

    peer: Peer

    def names(self) -> set[str]:
        return foreign.swift_names(self.endpoint, container=self.name)

    def fetch(self, key: str, path: Path) -> None:
        foreign.swift(self.endpoint, "download", self.name, key, "--output", path)

    def config(self) -> SwiftConfig:
        return SwiftConfig(
            container=self.name,
            reference_file=str(self.reference),
            region=self.endpoint.region,
            segment_bytes=MIB,
        )


def limits(container: str, endpoint: SwiftEndpoint) -> Mapping[str, object]:
    """The options of glance_store that all its stores here have."""
    return {
        "swift_store_container": container,
        "swift_store_region": endpoint.region,
        "swift_store_large_object_size": 2,
        "swift_store_large_object_chunk_size": 1,
    }


@contextmanager
def new_container(endpoint: SwiftEndpoint, directory: Path) -> Iterator[Container]:
    name = f"interop-{uuid.uuid4().hex[:12]}"
    foreign.swift(endpoint, "post", name)
    reference = directory / "swift.conf"
    reference.write_text(
        REFERENCE.format(
            project=endpoint.project,
            user=endpoint.user,
            key=endpoint.key,
            auth_url=endpoint.auth_url,
            user_domain=endpoint.user_domain,
            project_domain=endpoint.project_domain,
        )
    )
    options = {
        **limits(name, endpoint),
        "swift_store_config_file": str(reference),
        "default_swift_reference": "ref1",
    }
    with Peer("swift", options) as peer:
        yield Container(endpoint, name, reference, peer)
    foreign.swift(endpoint, "delete", name)


class TestSwift(InteropSuite):
    our_sizes = (0, 1, MIB, MIB + 1, 3 * MIB + 17)
    their_sizes = (0, 1, 2 * MEGABYTE - 1, 2 * MEGABYTE, 3 * MEGABYTE)
    large_bytes = 3 * MEGABYTE

    @pytest.fixture(scope="class")
    @classmethod
    def container(
        cls, swift_keystone: SwiftEndpoint, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Container]:
        with new_container(swift_keystone, tmp_path_factory.mktemp("swift")) as container:
            yield container

    @pytest.fixture
    async def shared(self, container: Container) -> AsyncIterator[SharedStore]:
        driver = SwiftDriver("ours", container.config(), StoreOptions())
        yield SharedStore(
            peer=container.peer,
            driver=driver,
            names=container.names,
            fetch=container.fetch,
            settings=settings_of("swift", container.config()),
        )
        await driver.aclose()

    @pytest.mark.parametrize("size_bytes", [1000, 2 * MEGABYTE])
    async def test_a_location_with_credentials_is_read_and_deleted(
        self, tmp_path: Path, container: Container, shared: SharedStore, engine: Engine, size_bytes: int
    ) -> None:
        """As a glance_store without a configuration file writes it."""
        endpoint, before = container.endpoint, container.names()
        options = {
            **limits(container.name, endpoint),
            "swift_store_auth_address": endpoint.auth_url,
            "swift_store_user": f"{endpoint.project}:{endpoint.user}",
            "swift_store_key": endpoint.key,
        }
        digests = write_image(tmp_path / "source.img", size_bytes)
        with Peer("swift", options) as peer:
            url = peer.add(str(uuid.uuid4()), tmp_path / "source.img")["url"]
        assert f":{endpoint.key}@" in url
        found = await measure(shared.driver, key_of_location(url), engine=engine, digests=DIGESTS)
        assert dict(found.digests) == digests
        assert endpoint.key not in str(found.info)
        await shared.driver.delete(key_of_location(url), identity=found.info.identity)
        assert container.names() == before

    async def test_a_glance_store_without_a_reference_file_reads_and_deletes_what_we_wrote(
        self, tmp_path: Path, container: Container, shared: SharedStore, engine: Engine
    ) -> None:
        """Its own credentials are those of its `default_swift_reference`, so no location needs any."""
        endpoint, before, image = container.endpoint, container.names(), str(uuid.uuid4())
        options = {
            **limits(container.name, endpoint),
            "swift_store_auth_address": endpoint.auth_url,
            "swift_store_user": f"{endpoint.project}:{endpoint.user}",
            "swift_store_key": endpoint.key,
            "default_swift_reference": "ref1",
        }
        digests = write_image(tmp_path / "source.img", 3 * MIB)
        location = (await import_image(tmp_path / "source.img", image, shared.driver, engine)).location
        assert location == f"swift+config://ref1/{container.name}/{image}"
        with Peer("swift", options) as peer:
            assert peer.get_and_delete(location)["digests"] == digests
        assert container.names() == before

    async def test_both_find_an_image_in_one_of_many_containers(
        self, tmp_path: Path, container: Container, engine: Engine
    ) -> None:
        seed = {"swift_store_multiple_containers_seed": 10, "swift_store_create_container_on_put": True}
        options = {
            **limits(container.name, container.endpoint),
            "swift_store_config_file": str(container.reference),
            "default_swift_reference": "ref1",
            **seed,
        }
        config = SwiftConfig(
            container=container.name,
            reference_file=str(container.reference),
            region=container.endpoint.region,
            multiple_containers_seed=10,
            create_container=True,
            segment_bytes=MIB,
        )
        driver = SwiftDriver("ours", config, StoreOptions())
        theirs, ours = str(uuid.uuid4()), str(uuid.uuid4())
        digests = write_image(tmp_path / "source.img", 2 * MEGABYTE)
        try:
            with Peer("swift", options) as peer:
                url = peer.add(theirs, tmp_path / "source.img")["url"]
                found = await measure(driver, key_of_location(url), engine=engine, digests=DIGESTS)
                location = (await import_image(tmp_path / "source.img", ours, driver, engine)).location
                assert location is not None
                assert peer.get_and_delete(location)["digests"] == digests
                assert peer.refuses("get", location) == "NotFound"
            assert dict(found.digests) == digests
            assert found.info.location == url
            await driver.delete(theirs)
        finally:
            await driver.aclose()
        for name in (theirs, ours):
            foreign_container = f"{container.name}_{name[:11]}"
            assert foreign.swift_names(container.endpoint, container=foreign_container) == set()
            foreign.swift(container.endpoint, "delete", foreign_container)
