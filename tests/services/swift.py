"""A Swift of our own on loopback, in `.venv-swift`: proxy, account, container and object server, one replica.

Its accounts are tempauth's; its S3 API is a second real S3 server. A second proxy before the same servers
knows Keystone's projects, once there is a Keystone.
"""

from __future__ import annotations

import getpass
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.services.endpoints import S3Endpoint, SwiftEndpoint
from tests.services.http_call import answers, call
from tests.services.keystone import DOMAIN, REGION
from tests.services.processes import HOST, free_ports, missing_programs, new_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.keystone import Keystone
    from tests.services.processes import Daemon, Place

ENVIRONMENT = Path(__file__).parents[2] / ".venv-swift"

_SERVERS = ("account", "container", "object")

_SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = {hash}
swift_hash_path_suffix = {hash}
[storage-policy:0]
name = Policy-0
default = yes
"""

_SERVER_CONF = """\
[DEFAULT]
devices = {place}/data
mount_check = false
bind_ip = {host}
bind_port = {port}
workers = 1
user = {user}
swift_dir = {place}
log_level = WARNING
# Nothing catches up with what a busy machine did not do in time: no updater runs.
conn_timeout = 10
node_timeout = 30
container_update_timeout = 30
[pipeline:main]
pipeline = healthcheck {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
replication_server = false
[filter:healthcheck]
use = egg:swift#healthcheck
"""

_PROXY_CONF = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 1
user = {user}
swift_dir = {place}
log_level = INFO
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck proxy-logging cache listing_formats bulk tempurl {auth} copy
    slo dlo versioned_writes symlink proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
conn_timeout = 10
node_timeout = 30
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
memcache_servers = {host}:{memcached}
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:tempurl]
use = egg:swift#tempurl
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
min_segment_size = 1
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
[filter:symlink]
use = egg:swift#symlink
"""

_TEMPAUTH_CONF = """\
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
auth_pipeline_check = false
min_segment_size = 1
[filter:tempauth]
use = egg:swift#tempauth
reseller_prefix = TA
user_{user} = {key} .admin
"""

_KEYSTONE_CONF = """\
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {auth_url}
auth_url = {auth_url}
auth_type = password
username = {username}
password = {password}
project_name = {project}
user_domain_name = {domain}
project_domain_name = {domain}
delay_auth_decision = True
cache = swift.cache
include_service_catalog = False
service_token_roles_required = True
[filter:keystoneauth]
use = egg:swift#keystoneauth
reseller_prefix = AUTH
operator_roles = admin, member
reseller_admin_role = admin
"""

_RINGS = """\
import sys
from swift.common.ring import RingBuilder
place, host, *servers = sys.argv[1:]
for number, server in enumerate(servers):
    kind, port = server.split(":")
    builder = RingBuilder(6, 1, 0)
    builder.add_dev(dict(
        id=0, region=1, zone=1, weight=1, device="disk", meta="",
        ip=host, port=int(port), replication_ip=host, replication_port=int(port),
    ))
    builder.rebalance()
    builder.get_ring().save(f"{place}/{kind}.ring.gz")
"""


@dataclass(frozen=True, slots=True)
class Swift:
    """The running servers, reached with tempauth."""

    s3: S3Endpoint
    tempauth: SwiftEndpoint
    url: str
    _place: Place = field(repr=False)
    _proxy: Daemon = field(repr=False)
    _servers: tuple[Daemon, ...] = field(repr=False)
    _memcached_port: int = field(repr=False)

    def kill_proxy(self) -> None:
        """The proxy crashes: connections are refused."""
        self._proxy.kill()

    def start_proxy(self) -> None:
        """Start the proxy again; returns when it answers. Tokens it gave before stay valid."""
        _start(self._proxy, self.url)

    def freeze_proxy(self) -> None:
        """The proxy hangs, with its connections open, until `thaw_proxy`."""
        self._proxy.freeze()

    def thaw_proxy(self) -> None:
        """The proxy goes on."""
        self._proxy.thaw()

    @property
    def cpu_pids(self) -> list[int]:
        """All processes that work for this Swift, to measure what it costs."""
        return [pid for daemon in (self._proxy, *self._servers) for pid in daemon.process_ids]


def unavailable() -> str | None:
    """Why this machine cannot run the servers, or None when it can."""
    if not (ENVIRONMENT / ".made-for").exists():
        return f"{ENVIRONMENT.name} is not made; `make services` makes it"
    return missing_programs("memcached")


@contextmanager
def running(place: Place) -> Iterator[Swift]:
    """New servers, started and ready; ended afterwards."""
    memcached_port, proxy_port, *ports = free_ports(2 + len(_SERVERS))
    servers = dict(zip(_SERVERS, ports, strict=True))
    (place.directory / "data" / "disk").mkdir(parents=True)
    place.write("swift.conf", _SWIFT_CONF.format(hash=new_key()))
    python = ENVIRONMENT / "bin" / "python"
    place.run(
        python, "-c", _RINGS, place.directory, HOST, *(f"{kind}:{port}" for kind, port in servers.items())
    )
    account, user, key = "glissade", "tester", new_key()
    auth_conf = _TEMPAUTH_CONF.format(user=f"{account}_{user}", key=key)
    url = f"http://{HOST}:{proxy_port}"
    daemons = [
        place.daemon(
            "memcached", "memcached", "-u", getpass.getuser(), "-l", HOST, "-p", str(memcached_port)
        ),
        *(_server(place, kind, port) for kind, port in servers.items()),
    ]
    proxy = _proxy(place, "proxy", proxy_port, memcached_port, "s3api tempauth", auth_conf)
    tempauth = SwiftEndpoint(auth_url=f"{url}/auth/v1.0", user=f"{account}:{user}", key=key, auth_version="1")
    s3 = S3Endpoint(url=url, access_key=tempauth.user, secret_key=key, bucket=tempauth.container)
    swift = Swift(s3, tempauth, url, place, proxy, tuple(daemons), memcached_port)
    try:
        for daemon in (*daemons, proxy):
            daemon.start()
        for daemon, port in zip(daemons[1:], ports, strict=True):
            _start(daemon, f"http://{HOST}:{port}")
        swift.start_proxy()
        token = call(
            "GET", tempauth.auth_url, headers={"X-Auth-User": tempauth.user, "X-Auth-Key": key}
        ).headers
        _make_container(token["X-Storage-Url"], tempauth.container, token["X-Auth-Token"])
        yield swift
    finally:
        for daemon in (proxy, *daemons):
            daemon.kill()


@contextmanager
def with_keystone(swift: Swift, keystone: Keystone) -> Iterator[SwiftEndpoint]:
    """A second proxy in front of the same servers that knows Keystone's projects; it joins the catalogue."""
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    keystone.add_to_catalogue("object-store", f"{url}/v1/AUTH_$(project_id)s")
    service, user = keystone.service, keystone.images
    auth_conf = _KEYSTONE_CONF.format(
        auth_url=keystone.auth_url,
        username=service.name,
        password=service.password,
        project=service.project,
        domain=DOMAIN,
    )
    proxy = _proxy(
        swift._place, "proxy-keystone", port, swift._memcached_port, "authtoken keystoneauth", auth_conf
    )
    endpoint = SwiftEndpoint(
        auth_url=keystone.auth_url,
        user=user.name,
        key=user.password,
        auth_version="3",
        project=user.project,
        project_domain=DOMAIN,
        user_domain=DOMAIN,
        region=REGION,
    )
    try:
        _start(proxy, url)
        account = f"{url}/v1/AUTH_{keystone.project_id(user)}"
        _make_container(account, endpoint.container, keystone.token(user))
        yield endpoint
    finally:
        proxy.kill()


def _server(place: Place, kind: str, port: int) -> Daemon:
    text = _SERVER_CONF.format(place=place.directory, host=HOST, port=port, user=getpass.getuser(), kind=kind)
    return _daemon(place, f"{kind}-server", kind, text)


def _proxy(place: Place, name: str, port: int, memcached_port: int, auth: str, auth_conf: str) -> Daemon:
    text = _PROXY_CONF.format(
        place=place.directory,
        host=HOST,
        port=port,
        user=getpass.getuser(),
        auth=auth,
        memcached=memcached_port,
    )
    return _daemon(place, name, "proxy", text + auth_conf)


def _daemon(place: Place, name: str, kind: str, conf: str) -> Daemon:
    path = place.write(f"{name}.conf", conf)
    environment = {"SWIFT_DIR": str(place.directory), "EVENTLET_NO_GREENDNS": "yes"}
    # "verbose" is what makes it log to its standard output too: there may be no syslog.
    program = ENVIRONMENT / "bin" / f"swift-{kind}-server"
    return place.daemon(name, program, path, "verbose", environment=environment)


def _start(daemon: Daemon, url: str) -> None:
    daemon.start()
    wait_until(daemon.name, lambda: answers(f"{url}/healthcheck"), daemons=(daemon,))


def _make_container(account: str, container: str, token: str) -> None:
    call("PUT", f"{account}/{container}", headers={"X-Auth-Token": token})
