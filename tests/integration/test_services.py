"""The real servers that other tests use: each answers, comes back after a crash, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.services import ceph as ceph_cluster
from tests.services import foreign
from tests.services import swift as swift_servers
from tests.services.http_call import answers, call
from tests.services.processes import ServiceError, Session, wait_until
from tests.services.reaper import marked

if TYPE_CHECKING:
    from tests.services.ceph import Ceph
    from tests.services.endpoints import S3Endpoint, SwiftEndpoint
    from tests.services.keystone import Keystone
    from tests.services.postgres import Postgres
    from tests.services.swift import Swift

ROOT = Path(__file__).parents[2]


def skip_if(reason: str | None) -> None:
    if reason is not None:
        pytest.skip(reason)


def s3_works(server: S3Endpoint, tmp_path: Path) -> bool:
    """Whether foreign clients can put an object into the bucket, see it and delete it again."""
    skip_if(foreign.aws_unavailable() or foreign.rclone_unavailable())
    (tmp_path / "body").write_bytes(b"hello")
    name = ("--bucket", server.bucket, "--key", "services-test")
    foreign.aws(server, "put-object", *name, "--body", tmp_path / "body")
    found = foreign.s3_names(server)
    foreign.aws(server, "delete-object", *name)
    return "services-test" in found and "services-test" not in foreign.s3_names(server)


def swift_works(server: SwiftEndpoint, tmp_path: Path) -> bool:
    """The same through the Swift API."""
    skip_if(foreign.swift_unavailable())
    (tmp_path / "body").write_bytes(b"hello")
    foreign.swift(server, "upload", server.container, tmp_path / "body", "--object-name", "services-test")
    found = foreign.swift_names(server)
    foreign.swift(server, "delete", server.container, "services-test")
    return "services-test" in found and "services-test" not in foreign.swift_names(server)


@pytest.mark.service("ceph")
def test_ceph_is_healthy_and_counts_its_space(ceph: Ceph) -> None:
    wait_until("health", lambda: ceph.ceph("health")["status"] == "HEALTH_OK")
    wait_until("statistics", lambda: ceph.ceph("df")["stats"]["total_avail_bytes"] > 0)
    assert ceph.ceph("fsid")["fsid"] == ceph.fsid


@pytest.mark.service("ceph")
@pytest.mark.parametrize("pool", ceph_cluster.POOLS)
def test_the_user_may_do_in_both_pools_what_glance_does(ceph: Ceph, pool: str) -> None:
    image = f"{pool}/services-test"
    as_user = ("--name", f"client.{ceph.user}")
    ceph.rbd(*as_user, "create", "--size", "8M", image)
    ceph.rbd(*as_user, "snap", "create", f"{image}@snap")
    ceph.rbd(*as_user, "snap", "protect", f"{image}@snap")
    assert "services-test" in ceph.rbd(*as_user, "ls", pool).split()
    ceph.rbd(*as_user, "snap", "unprotect", f"{image}@snap")
    ceph.rbd(*as_user, "snap", "purge", image, "--no-progress")
    ceph.rbd(*as_user, "rm", image, "--no-progress")
    assert "services-test" not in ceph.rbd("ls", pool).split()


@pytest.mark.service("ceph")
def test_the_gateway_answers_as_s3_and_as_swift(ceph: Ceph, tmp_path: Path) -> None:
    assert s3_works(ceph.s3, tmp_path)
    assert swift_works(ceph.swift, tmp_path)


@pytest.mark.service("ceph")
def test_the_osd_comes_back_after_a_crash(ceph: Ceph) -> None:
    ceph.stop_osd()
    try:
        assert ceph.ceph("fsid")["fsid"] == ceph.fsid
    finally:
        ceph.start_osd()
    assert "services-test" not in ceph.rbd("ls", "images").split()


@pytest.mark.service("ceph")
def test_the_gateway_comes_back_after_a_crash(ceph: Ceph) -> None:
    ceph.kill_radosgw()
    try:
        assert not answers(ceph.s3.url)
    finally:
        ceph.start_radosgw()
    assert answers(ceph.s3.url)


@pytest.mark.service("swift")
def test_swift_answers_with_tempauth_and_as_s3(swift_server: Swift, tmp_path: Path) -> None:
    assert swift_works(swift_server.tempauth, tmp_path)
    assert s3_works(swift_server.s3, tmp_path)


@pytest.mark.service("swift")
def test_the_proxy_comes_back_after_a_crash_and_knows_its_tokens(swift_server: Swift) -> None:
    user = {"X-Auth-User": swift_server.tempauth.user, "X-Auth-Key": swift_server.tempauth.key}
    granted = call("GET", swift_server.tempauth.auth_url, headers=user).headers
    swift_server.kill_proxy()
    try:
        assert not answers(f"{swift_server.url}/healthcheck")
    finally:
        swift_server.start_proxy()
    call("GET", granted["X-Storage-Url"], headers={"X-Auth-Token": granted["X-Auth-Token"]})
    assert len(swift_server.cpu_pids) >= 5


@pytest.mark.service("keystone")
def test_keystone_gives_tokens_and_takes_them_back(keystone: Keystone) -> None:
    token = keystone.token(keystone.demo)
    subject = {"X-Auth-Token": keystone.token(keystone.admin), "X-Subject-Token": token}
    shown = call("GET", f"{keystone.auth_url}/auth/tokens", headers=subject).json()["token"]
    assert (shown["user"]["name"], shown["project"]["name"]) == ("demo", "demo")
    keystone.revoke(token)
    with pytest.raises(ServiceError, match="404"):
        call("GET", f"{keystone.auth_url}/auth/tokens", headers=subject)


@pytest.mark.service("keystone")
def test_keystone_comes_back_after_a_crash_and_knows_its_tokens(keystone: Keystone) -> None:
    token = keystone.token(keystone.demo)
    keystone.kill()
    try:
        assert not answers(keystone.auth_url)
    finally:
        keystone.start()
    call("GET", f"{keystone.auth_url}/auth/catalog", headers={"X-Auth-Token": token})


@pytest.mark.service("postgres")
def test_postgres_keeps_what_it_acknowledged_when_it_crashes(postgres: Postgres) -> None:
    name = postgres.new_database()
    postgres.query(name, "create table t as select 7 as n")
    postgres.restart()
    assert postgres.query(name, "select n from t") == [["7"]]


@pytest.mark.service("keystone")
def test_swift_answers_to_a_user_of_keystone(swift_keystone: SwiftEndpoint, tmp_path: Path) -> None:
    assert swift_works(swift_keystone, tmp_path)


@pytest.mark.service("ceph")
@pytest.mark.timeout(600)
def test_a_second_ceph_starts_and_leaves_nothing() -> None:
    skip_if(ceph_cluster.unavailable())
    with Session() as session:
        with ceph_cluster.running(session.place("ceph")) as second:
            assert answers(second.s3.url)
        assert session.process_ids() == []
    assert not session.root.exists()


@pytest.mark.service("swift")
@pytest.mark.timeout(600)
def test_a_second_swift_starts_and_leaves_nothing() -> None:
    skip_if(swift_servers.unavailable())
    with Session() as session:
        with swift_servers.running(session.place("swift")) as second:
            assert answers(f"{second.url}/healthcheck")
        assert session.process_ids() == []
    assert not session.root.exists()


@pytest.mark.service("swift")
@pytest.mark.timeout(600)
def test_servers_end_with_a_session_that_is_killed() -> None:
    skip_if(swift_servers.unavailable())
    program = textwrap.dedent(
        """
        import signal
        from tests.services import swift
        from tests.services.processes import Session
        with Session() as session, swift.running(session.place("swift")):
            print(session.root, flush=True)
            signal.pause()
        """
    )
    killed = subprocess.Popen((sys.executable, "-c", program), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    with killed.stdout:
        root = Path(killed.stdout.readline().strip())
    assert len(marked(str(root))) >= 5
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + 120
    while root.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(str(root)) == []
    assert not root.exists()


def test_an_interrupted_session_ends_what_runs_and_starts_nothing_more() -> None:
    with Session() as session:
        daemon = session.place("interrupted").daemon("sleeping", "sleep", "1000")
        daemon.start()
        session.interrupt()
        wait_until("its end", lambda: not daemon.is_running)
        with pytest.raises(ServiceError, match="the session ends"):
            daemon.start()


def test_a_server_that_ends_at_once_says_why() -> None:
    with Session() as session:
        place = session.place("broken")
        daemon = place.daemon("broken", "sh", "-c", "echo no such disk >&2; exit 1")
        daemon.start()
        with pytest.raises(ServiceError, match=r"(?s)the store: broken ended.*no such disk"):
            wait_until("the store", lambda: False, daemons=(daemon,))
