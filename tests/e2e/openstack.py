"""OpenStack's clients as people have them, run against a daemon and a real Keystone."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.services.keystone import Keystone, KeystoneUser

ENVIRONMENT = Path(__file__).parents[2] / ".venv-clients"
MISSING = (
    None
    if (ENVIRONMENT / ".made-for").exists()
    else "OpenStack's clients: .venv-clients is not made; `make test` makes it"
)
needs_clients = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

_TIMEOUT_S = 240.0


class ClientError(AssertionError):
    """A client failed that must not have."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """The commands of one user, with a home directory of their own."""

    environment: Mapping[str, str] = field(repr=False)
    home: Path

    @classmethod
    def of(cls, keystone: Keystone, user: KeystoneUser, home: Path) -> Client:
        home.mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return cls(
            environment={
                **kept,
                "HOME": str(home),
                "OS_AUTH_URL": keystone.auth_url,
                "OS_IDENTITY_API_VERSION": "3",
                "OS_USERNAME": user.name,
                "OS_PASSWORD": user.password,
                "OS_PROJECT_NAME": user.project,
                "OS_USER_DOMAIN_NAME": "Default",
                "OS_PROJECT_DOMAIN_NAME": "Default",
                "OS_REGION_NAME": "RegionOne",
                "PYTHONWARNINGS": "ignore",
            },
            home=home,
        )

    @classmethod
    def with_token(cls, url: str, token: str, home: Path) -> Client:
        """Of a user who has a token of the daemon's own, and no Keystone."""
        home.mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return cls(
            environment={
                **kept,
                "HOME": str(home),
                # `openstack` and openstacksdk:
                "OS_AUTH_TYPE": "admin_token",
                "OS_ENDPOINT": f"{url}/v2",
                "OS_TOKEN": token,
                # `glance`:
                "OS_IMAGE_URL": url,
                "OS_AUTH_TOKEN": token,
                "PYTHONWARNINGS": "ignore",
            },
            home=home,
        )

    def try_(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run it, whatever comes of it. It has a terminal that nobody types on: from anything else
        `openstack` would take an image's bytes.
        """
        ours, theirs = os.openpty()
        try:
            return subprocess.run(
                [ENVIRONMENT / "bin" / program, *arguments],
                env=self._environment_of(program),
                stdin=theirs,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        finally:
            os.close(ours)
            os.close(theirs)

    def _environment_of(self, program: str) -> dict[str, str]:
        """`glance` fails when it is told of a way to come in that has no password."""
        kept = dict(self.environment)
        if program == "glance" and "OS_IMAGE_URL" in kept:
            del kept["OS_AUTH_TYPE"]
        return kept

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run it, and insist on success; what it printed."""
        done = self.try_(program, *arguments)
        if done.returncode != 0:
            raise ClientError(f"{program} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def openstack(self, *arguments: str | Path) -> Any:
        """`openstack image ... -f json`."""
        said = self.run("openstack", "image", *arguments, "-f", "json")
        return json.loads(said)

    def quietly(self, *arguments: str | Path) -> None:
        """`openstack image ...` where it prints nothing."""
        self.run("openstack", "image", *arguments)

    def glance(self, *arguments: str | Path) -> str:
        """`glance ...`."""
        return self.run("glance", *arguments)

    def python(self, script: str) -> Any:
        """A script for openstacksdk, which prints JSON."""
        return json.loads(self.run("python", "-c", script))
