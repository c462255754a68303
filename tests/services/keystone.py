"""A Keystone of our own on loopback: SQLite, fernet tokens, in `.venv-keystone`."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.services.http_call import answers, call
from tests.services.processes import HOST, free_ports, new_key, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.processes import Daemon, Place

ENVIRONMENT = Path(__file__).parents[2] / ".venv-keystone"

REGION = "RegionOne"
DOMAIN = "Default"

_CONF = """\
[DEFAULT]
use_stderr = true
[database]
connection = sqlite:///{place}/keystone.db
sqlite_synchronous = false
# Without a cache, validating one token takes a second.
[cache]
enabled = true
backend = dogpile.cache.memory
[token]
provider = fernet
expiration = 86400
[fernet_tokens]
key_repository = {place}/fernet
[fernet_receipts]
key_repository = {place}/fernet
[credential]
key_repository = {place}/credential
[identity]
password_hash_rounds = 4
"""

_UWSGI = """\
[uwsgi]
module = keystone.wsgi.api:application
http-socket = {host}:{port}
master = true
processes = 1
threads = 4
enable-threads = true
lazy-apps = true
die-on-term = true
add-header = Connection: close
buffer-size = 65535
disable-logging = true
"""

_SETUP = """\
import os, sys
from cryptography.fernet import Fernet
from keystone.cmd import cli
place, url, password, region = sys.argv[1:]
for kind in ("fernet", "credential"):
    os.mkdir(f"{place}/{kind}", 0o700)
    for name in "01":
        with open(os.open(f"{place}/{kind}/{name}", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.write(Fernet.generate_key())
endpoints = [word for kind in ("admin", "public", "internal") for word in (f"--bootstrap-{kind}-url", url)]
bootstrap = ["bootstrap", "--bootstrap-password", password, "--bootstrap-region-id", region, *endpoints]
for command in (["db_sync"], bootstrap):
    if os.fork() == 0:
        cli.main(["keystone-manage", "--config-file", f"{place}/keystone.conf", *command])
        sys.exit()
    if os.wait()[1] != 0:
        sys.exit(f"{command[0]} failed")
"""
"""What `keystone-manage` does when called several times; here it is loaded once, which takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeystoneUser:
    """A user of the domain Default, with roles in one project."""

    name: str
    password: str
    project: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keystone:
    """The running server. `auth_url` ends in /v3.

    `admin` may do all; `service` may act for others (roles admin and service), `mover` has the
    role service alone; `images` is the operator of an account for images, `demo` an ordinary member.
    """

    auth_url: str
    admin: KeystoneUser
    service: KeystoneUser
    mover: KeystoneUser
    images: KeystoneUser
    demo: KeystoneUser
    _daemon: Daemon = field(repr=False)

    def token(self, user: KeystoneUser) -> str:
        """A new token for a user, scoped to the user's project."""
        who = {"name": user.name, "domain": {"name": DOMAIN}, "password": user.password}
        scope = {"project": {"name": user.project, "domain": {"name": DOMAIN}}}
        identity = {"methods": ["password"], "password": {"user": who}}
        answer = call(
            "POST", f"{self.auth_url}/auth/tokens", body={"auth": {"identity": identity, "scope": scope}}
        )
        return str(answer.headers["X-Subject-Token"])

    def project_id(self, user: KeystoneUser) -> str:
        """The id of a user's project."""
        headers = {"X-Auth-Token": self.token(self.admin)}
        found = call("GET", f"{self.auth_url}/projects?name={user.project}", headers=headers).json()[
            "projects"
        ]
        return str(found[0]["id"])

    def revoke(self, token: str) -> None:
        """Make a token invalid before its time."""
        headers = {"X-Auth-Token": self.token(self.admin), "X-Subject-Token": token}
        call("DELETE", f"{self.auth_url}/auth/tokens", headers=headers)

    def add_to_catalogue(self, kind: str, url: str, *, region: str = REGION) -> None:
        """Say in the catalogue where a service answers; Keystone replaces `$(project_id)s` in the address. A
        region that it does not know yet is made.
        """
        token = self.token(self.admin)
        if region != REGION:
            self._make(token, "region", {"id": region})
        service = self._make(token, "service", {"type": kind, "name": kind})
        for interface in ("public", "internal", "admin"):
            endpoint = {"service_id": service, "interface": interface, "url": url, "region_id": region}
            self._make(token, "endpoint", endpoint)

    def kill(self) -> None:
        """The server crashes: connections are refused."""
        self._daemon.kill()

    def start(self) -> None:
        """Start the server again; returns when it answers. Tokens it gave before stay valid."""
        self._daemon.start()
        wait_until("keystone", lambda: answers(self.auth_url), daemons=(self._daemon,))

    def _make(self, token: str, kind: str, what: dict[str, Any]) -> str:
        answer = call("POST", f"{self.auth_url}/{kind}s", headers={"X-Auth-Token": token}, body={kind: what})
        return str(answer.json()[kind]["id"])

    def _make_users(self) -> None:
        headers = {"X-Auth-Token": self.token(self.admin)}
        known = call("GET", f"{self.auth_url}/roles", headers=headers).json()["roles"]
        roles = {role["name"]: role["id"] for role in known}
        projects: dict[str, str] = {}
        for user in (self.service, self.mover, self.images, self.demo):
            if user.project not in projects:
                what = {"name": user.project, "domain_id": "default"}
                projects[user.project] = self._make(headers["X-Auth-Token"], "project", what)
            what = {"name": user.name, "password": user.password, "domain_id": "default"}
            user_id = self._make(headers["X-Auth-Token"], "user", what)
            for role in user.roles:
                if role not in roles:
                    roles[role] = self._make(headers["X-Auth-Token"], "role", {"name": role})
                where = (
                    f"{self.auth_url}/projects/{projects[user.project]}/users/{user_id}/roles/{roles[role]}"
                )
                call("PUT", where, headers=headers)


def unavailable() -> str | None:
    """Why this machine cannot run the server, or None when it can."""
    if not (ENVIRONMENT / ".made-for").exists():
        return f"{ENVIRONMENT.name} is not made; `make services` makes it"
    return None


@contextmanager
def running(place: Place) -> Iterator[Keystone]:
    """A new server, started and ready; ended afterwards."""
    (port,) = free_ports(1)
    conf = place.write("keystone.conf", _CONF.format(place=place.directory))
    options = place.write("uwsgi.ini", _UWSGI.format(host=HOST, port=port))
    daemon = place.daemon(
        "keystone",
        ENVIRONMENT / "bin" / "uwsgi",
        "--ini",
        options,
        environment={"OS_KEYSTONE_CONFIG_DIR": str(place.directory), "OS_KEYSTONE_CONFIG_FILES": str(conf)},
    )
    keystone = Keystone(
        f"http://{HOST}:{port}/v3",
        KeystoneUser(name="admin", password=new_key(), project="admin", roles=("admin",)),
        KeystoneUser(name="glance", password=new_key(), project="service", roles=("admin", "service")),
        KeystoneUser(name="mover", password=new_key(), project="service", roles=("service",)),
        KeystoneUser(name="images", password=new_key(), project="images", roles=("member",)),
        KeystoneUser(name="demo", password=new_key(), project="demo", roles=("member",)),
        daemon,
    )
    python = ENVIRONMENT / "bin" / "python"
    admin = keystone.admin
    place.run(python, "-c", _SETUP, place.directory, keystone.auth_url, admin.password, REGION, timeout_s=180)
    try:
        keystone.start()
        keystone._make_users()
        yield keystone
    finally:
        daemon.stop()
