"""What all tests share: leaving out what the machine cannot do; file systems and servers for a session."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.steady_time import SteadyLoop
from tests.services import loopfs, tls
from tests.services.park import UNAVAILABLE, Park

pytest.register_assert_rewrite(
    "tests.integration.interop_suite", "tests.integration.glance_store", "tests.integration.tls_suite"
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from control.catalog.database import DatabaseAddress
    from dataplane.terms import Engine
    from tests.services.ceph import Ceph
    from tests.services.endpoints import SwiftEndpoint
    from tests.services.keystone import Keystone
    from tests.services.postgres import Postgres
    from tests.services.swift import Swift

STARTING_TIMEOUT_S = 400
"""For a test that may have to wait for servers to start, on a busy machine."""

# An example may take as long as the machine stands still.
settings.register_profile(
    "patient",
    settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """No time-out of a test ends because the machine stood still."""
    return {"steady": SteadyLoop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test SERVICES=none` leaves out everything that needs foreign programs, servers or mounts."""
    for item in items:
        # A fixture may ask for a server by its parameter: then only the marker tells.
        starts = "services" in getattr(item, "fixturenames", ()) or item.get_closest_marker("service")
        if starts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(STARTING_TIMEOUT_S))
    if os.environ.get("SERVICES", "all") != "none":
        return
    for item in items:
        for marker in ("loopfs", "service"):
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=f"SERVICES=none leaves out {marker}"))


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mount points by kind ("ext4", "xfs", "btrfs", "tmpfs"), each mounted when first asked for and shared by
    the whole session: use a directory of your own in it. Skips, by name, what this machine cannot mount.
    """
    points: dict[str, Path] = {}
    with ExitStack() as stack:

        def get(kind: str) -> Path:
            skip_unless_mountable(kind)
            if kind not in points:
                place = tmp_path_factory.mktemp(kind)
                points[kind] = stack.enter_context(loopfs.mounted(kind, place)).mount_point
            return points[kind]

        yield get


def skip_unless_mountable(kind: str) -> None:
    reason = loopfs.unavailable(kind)
    if reason is not None:
        pytest.skip(f"no {kind} here: {reason}")


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> Iterator[Park]:
    """The real servers, none of them started yet. Ask for one by the fixtures below."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with Park(wanted) as park:
        yield park


@pytest.fixture(scope="session")
def ceph(services: Park) -> Ceph:
    """A Ceph cluster for the whole session: use keys and image names of your own. Skips where it cannot run.

    A test that stops a daemon starts it again, whatever happens.
    """
    skip_unless_runnable("ceph")
    return services.ceph()


@pytest.fixture(scope="session")
def swift_server(services: Park) -> Swift:
    """A Swift with tempauth, and its S3 API, for the whole session. Skips where it cannot run."""
    skip_unless_runnable("swift_server")
    return services.swift()


@pytest.fixture(scope="session")
def keystone(services: Park) -> Keystone:
    """A Keystone for the whole session. Skips where it cannot run."""
    skip_unless_runnable("keystone")
    return services.keystone()


@pytest.fixture(scope="session")
def postgres(services: Park) -> Postgres:
    """A PostgreSQL server for the whole session: use databases of your own. Skips where it cannot run.

    A test that stops or freezes it lets it go on again, whatever happens.
    """
    skip_unless_runnable("postgres")
    return services.postgres()


@pytest.fixture(scope="session")
def catalog_template(postgres: Postgres) -> str:
    """The name of a PostgreSQL database that has this version's tables."""
    name = postgres.new_database()
    asyncio.run(_give_tables(postgres.address(name)))
    return name


async def _give_tables(address: DatabaseAddress) -> None:
    from control.catalog.database import connect_database

    database = await connect_database(address)
    await database.upgrade()
    await database.aclose()


@pytest.fixture
def shared_catalog(postgres: Postgres, catalog_template: str) -> DatabaseAddress:
    """A new catalogue on PostgreSQL."""
    return postgres.address(postgres.new_database(catalog_template))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certificates of two authorities, for servers that speak TLS."""
    if (why := tls.unavailable()) is not None:
        pytest.skip(why)
    where = tmp_path_factory.mktemp("tls")
    tls.make_authority(where)
    return where


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """What transfers run with: sixteen chunks of 1 MiB, all of which must come back."""
    from tests.engines import new_engine

    with new_engine() as engine:
        yield engine


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.service("postgres"))])
def catalog_address(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseAddress:
    """A new catalogue, once of each kind."""
    from control.catalog.database import DatabaseAddress

    if request.param == "sqlite":
        return DatabaseAddress(url=f"sqlite:///{tmp_path}/catalog.db")
    address: DatabaseAddress = request.getfixturevalue("shared_catalog")
    return address


@pytest.fixture(scope="session")
def swift_keystone(services: Park) -> SwiftEndpoint:
    """An account of the session's Swift, by the session's Keystone. Skips where they cannot run."""
    skip_unless_runnable("swift_keystone")
    return services.swift_keystone()


def skip_unless_runnable(service: str) -> None:
    reason = "SERVICES=none" if os.environ.get("SERVICES") == "none" else UNAVAILABLE[service]()
    if reason is not None:
        pytest.skip(f"no {service} here: {reason}")
