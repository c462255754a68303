"""A Ceph cluster of our own on loopback: monitor, manager, one OSD on a sparse file, and a RADOS gateway.

Everything is made new for the session below its place and is gone afterwards. Two pools hold RBD images; the
gateway has one user for S3 and for Swift, whose bucket and container is the same.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dataplane.store import GIB
from tests.services.endpoints import S3Endpoint, SwiftEndpoint
from tests.services.http_call import answers, call
from tests.services.processes import (
    HOST,
    free_port_range,
    free_ports,
    missing_programs,
    new_key,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.services.processes import Daemon, Place

USER = "glissade"
POOLS = ("images", "volumes")

_OSD_BYTES = 24 * GIB
"""Sparse: the disk gives what is written, and gets nothing back before the end."""

_NEEDED_BYTES = 8 * GIB

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:{host}:{mon_v2}/0,v1:{host}:{mon_v1}/0]
public addr = {host}
cluster addr = {host}
public network = {host}/32
ms bind port min = {first_port}
ms bind port max = {last_port}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {place}/$name.keyring
log file =
log to stderr = true
err to stderr = true
pid file =
run dir = {place}/run
admin socket = {place}/run/$name.asok
crash dir = {place}/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon data avail warn = 2
mon data avail crit = 1
mon osd nearfull ratio = .93
mon osd backfillfull ratio = .95
mon osd full ratio = .97
mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon warn on pool no app = false
# Changes of the maps take effect at once, not in rounds of a second.
paxos propose interval = 0.05
mon data = {place}/data/mon.$id
mgr data = {place}/data/mgr.$id
osd data = {place}/data/osd.$id
rgw data = {place}/data/rgw.$id
[client]
admin socket =
[mgr]
mgr initial modules =
mgr stats period = 1
[osd]
osd objectstore = bluestore
bluestore block create = true
bluestore block size = {osd_bytes}
bluestore fsck on mount = false
osd memory target = 939524096
osd mclock profile = high_client_ops
[client.rgw.a]
admin socket = {place}/run/$name.asok
rgw frontends = beast endpoint={host}:{rgw}
rgw thread pool size = 64
rgw enable usage log = false
rgw swift account in url = true
# Deleted objects give their space back within a minute or two, not after an hour.
rgw gc obj min wait = 60
rgw gc processor period = 60
rgw gc processor max time = 60
rgw gc max concurrent io = 4
rgw dns name = localhost
"""


@dataclass(frozen=True, slots=True)
class Ceph:
    """A cluster. `conf` names the keyring of `client.<user>`, who may do what Glance may there."""

    conf: Path
    fsid: str
    user: str
    pools: tuple[str, str]
    s3: S3Endpoint
    swift: SwiftEndpoint
    _place: Place = field(repr=False)
    _osd: Daemon = field(repr=False)
    _radosgw: Daemon = field(repr=False)

    def ceph(self, *arguments: str) -> Any:
        """Run the `ceph` command as administrator; returns what it answers, from JSON."""
        said = self._place.run("ceph", "--conf", self.conf, "--format", "json", *arguments)
        return json.loads(said) if said.strip() else None

    def rbd(self, *arguments: str, check: bool = True) -> str:
        """Run the `rbd` command as administrator; returns its output."""
        return self._place.run("rbd", "--conf", self.conf, *arguments, check=check)

    def stop_osd(self) -> None:
        """The OSD crashes: requests for data hang, while the monitor goes on answering."""
        self._osd.kill()

    def start_osd(self) -> None:
        """Start the OSD again; returns when it serves. Nothing happens when it already does."""
        if not self._osd.is_running:
            _start_osd(self._place, self._osd)

    def freeze_osd(self) -> None:
        """The OSD hangs, with its connections open, until `thaw_osd`."""
        self._osd.freeze()

    def thaw_osd(self) -> None:
        """The OSD goes on."""
        self._osd.thaw()

    def kill_radosgw(self) -> None:
        """The gateway crashes: S3 and Swift connections are refused."""
        self._radosgw.kill()

    def start_radosgw(self) -> None:
        """Start the gateway again; returns when it answers. Nothing happens when it already does."""
        if not self._radosgw.is_running:
            _start_radosgw(self._radosgw, self.s3.url)

    def freeze_radosgw(self) -> None:
        """The gateway hangs, with its connections open, until `thaw_radosgw`."""
        self._radosgw.freeze()

    def thaw_radosgw(self) -> None:
        """The gateway goes on."""
        self._radosgw.thaw()

    @property
    def radosgw_process_ids(self) -> list[int]:
        """The gateway's processes."""
        return self._radosgw.process_ids

    @property
    def osd_process_ids(self) -> list[int]:
        """The OSD's processes."""
        return self._osd.process_ids


def unavailable() -> str | None:
    """Why this machine cannot run the cluster, or None when it can."""
    reason = missing_programs(
        "ceph",
        "ceph-authtool",
        "ceph-mon",
        "ceph-mgr",
        "ceph-osd",
        "monmaptool",
        "radosgw",
        "radosgw-admin",
        "rbd",
    )
    if reason is None and shutil.disk_usage("/tmp").free < _NEEDED_BYTES:
        return f"/tmp has less than {_NEEDED_BYTES // GIB} GiB free"
    return reason


@contextmanager
def running(place: Place) -> Iterator[Ceph]:
    """A new cluster, started and ready; ended and removed afterwards."""
    fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
    mon_v2, mon_v1, rgw = free_ports(3)
    osd_ports = free_port_range(24)
    conf = place.write(
        "ceph.conf",
        _CONF.format(
            place=place.directory,
            fsid=fsid,
            host=HOST,
            mon_v2=mon_v2,
            mon_v1=mon_v1,
            rgw=rgw,
            first_port=osd_ports[0],
            last_port=osd_ports[-1],
            osd_bytes=_OSD_BYTES,
        ),
    )
    for name in ("run", "crash", "data/mgr.x", "data/osd.0", "data/rgw.a"):
        (place.directory / name).mkdir(parents=True)
    monitor = place.daemon("mon.a", "ceph-mon", "-f", "-i", "a", "-c", conf)
    manager = place.daemon("mgr.x", "ceph-mgr", "-f", "-i", "x", "-c", conf)
    osd = place.daemon("osd.0", "ceph-osd", "-f", "-i", "0", "-c", conf)
    radosgw = place.daemon("client.rgw.a", "radosgw", "-f", "-n", "client.rgw.a", "-c", conf)
    s3 = S3Endpoint(url=f"http://{HOST}:{rgw}", access_key=new_key(), secret_key=new_key(), bucket=POOLS[0])
    swift = SwiftEndpoint(
        auth_url=f"{s3.url}/auth/v1.0",
        user=f"{USER}:swift",
        key=new_key(),
        auth_version="1",
        container=s3.bucket,
    )
    cluster = Ceph(conf, fsid, USER, POOLS, s3, swift, place, osd, radosgw)
    try:
        _make_keyrings(place)
        with ThreadPoolExecutor() as threads:
            osd_made = threads.submit(
                place.run,
                "ceph-osd",
                "-c",
                conf,
                "-i",
                "0",
                "--mkfs",
                "--no-mon-config",
                "--osd-uuid",
                osd_uuid,
            )
            _make_monitor(place, conf, f"[v2:{HOST}:{mon_v2},v1:{HOST}:{mon_v1}]", fsid)
            monitor.start()
            wait_until(
                "ceph monitor", lambda: _says(place, "mon.a", "mon_status", "leader"), daemons=(monitor,)
            )
            manager.start()
            pools_made = threads.submit(_make_pools, cluster)
            cluster.ceph("osd", "new", osd_uuid, "0")
            osd_made.result()
            _start_osd(place, osd)
            pools_made.result()
            radosgw.start()
            user_made = threads.submit(_make_gateway_user, place, conf, s3, swift)
            for pool in POOLS:
                cluster.rbd("pool", "init", pool)
            _start_radosgw(radosgw, s3.url)
            user_made.result()
        _make_bucket(swift)
        yield cluster
    finally:
        for daemon in (radosgw, manager, osd, monitor):
            daemon.kill()
        shutil.rmtree(place.directory / "data", ignore_errors=True)


def _make_keyrings(place: Place) -> None:
    """Keys for all: the monitor knows them from its start, which saves asking it for each."""
    osd_caps = ", ".join(f"profile rbd pool={pool}" for pool in POOLS)
    entities = {
        "mon.": {"mon": "allow *"},
        "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
        "mgr.x": {"mon": "allow profile mgr", "osd": "allow *"},
        "osd.0": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
        "client.rgw.a": {"mon": "allow rw", "osd": "allow rwx", "mgr": "allow rw"},
        f"client.{USER}": {"mon": "profile rbd", "osd": osd_caps, "mgr": osd_caps},
    }
    rings = ""
    for entity, caps in entities.items():
        key = place.run("ceph-authtool", "--gen-print-key").strip()
        ring = f"[{entity}]\n\tkey = {key}\n"
        ring += "".join(f'\tcaps {service} = "{what}"\n' for service, what in caps.items())
        place.write(f"{entity}.keyring", ring)
        rings += ring
    place.write("all.keyring", rings)


def _make_monitor(place: Place, conf: Path, addresses: str, fsid: str) -> None:
    monmap = place.directory / "monmap"
    place.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monmap)
    keyring = place.directory / "all.keyring"
    place.run("ceph-mon", "-c", conf, "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)


def _make_pools(cluster: Ceph) -> None:
    # As in any cluster of today: clones are of format 2, and do not hold their source.
    cluster.ceph("osd", "set-require-min-compat-client", "mimic")
    for pool in cluster.pools:
        cluster.ceph("osd", "pool", "create", pool, "8")


def _start_osd(place: Place, osd: Daemon) -> None:
    osd.start()
    wait_until("ceph OSD", lambda: _says(place, "osd.0", "status", "active"), daemons=(osd,))


def _start_radosgw(radosgw: Daemon, url: str) -> None:
    radosgw.start()
    wait_until("radosgw", lambda: answers(url), daemons=(radosgw,))


def _make_gateway_user(place: Place, conf: Path, s3: S3Endpoint, swift: SwiftEndpoint) -> None:
    admin = ("radosgw-admin", "-c", str(conf), "-n", "client.rgw.a")
    uid = f"--uid={USER}"
    keys = (f"--access-key={s3.access_key}", f"--secret={s3.secret_key}")
    place.run(*admin, "user", "create", uid, f"--display-name={USER}", *keys)
    subuser = (f"--subuser={swift.user}", "--access=full", "--key-type=swift", f"--secret={swift.key}")
    place.run(*admin, "subuser", "create", uid, *subuser)


def _make_bucket(swift: SwiftEndpoint) -> None:
    """Through the Swift API, which needs no signature; bucket and container are one in the gateway."""
    token = call("GET", swift.auth_url, headers={"X-Auth-User": swift.user, "X-Auth-Key": swift.key}).headers
    container = f"{token['X-Storage-Url']}/{swift.container}"
    call("PUT", container, headers={"X-Auth-Token": token["X-Auth-Token"]})


def _says(place: Place, daemon: str, question: str, state: str) -> bool:
    """Whether a daemon calls itself to be in this state, asked at its administrative socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        try:
            connection.connect(str(place.directory / "run" / f"{daemon}.asok"))
            connection.sendall(json.dumps({"prefix": question}).encode() + b"\0")
            with connection.makefile("rb") as answer:
                (size,) = struct.unpack(">I", answer.read(4))
                return bool(json.loads(answer.read(size)).get("state") == state)
        except (OSError, struct.error, ValueError):
            return False
