"""Clients that are not ours, to confirm what lies in a store: `aws`, `swift` and rclone."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.services.processes import ServiceError, program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.services.endpoints import S3Endpoint, SwiftEndpoint

_SWIFT = Path(__file__).parents[2] / ".venv-rivals" / "bin" / "swift"


def swift_unavailable() -> str | None:
    """Why there is no `swift` command here, or None when there is."""
    return None if _SWIFT.exists() else "swift: .venv-rivals is not made; `make rivals` makes it"


@functools.cache
def aws_unavailable() -> str | None:
    """Why there is no `aws` command here, or None when there is one that works."""
    if program("aws") is None:
        return "aws is not installed (as root, `make services` installs it)"
    try:
        _run(("aws", "--version"), {})
    except ServiceError as error:
        return str(error)
    return None


def rclone_unavailable() -> str | None:
    """Why there is no rclone here, or None when there is."""
    return None if program("rclone") else "rclone is not installed (as root, `make services` installs it)"


def aws(server: S3Endpoint, *arguments: str | Path) -> Any:
    """Run `aws s3api` (or, when that comes first, `aws s3`) as the user of a server; returns its answer."""
    environment = {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    service = () if arguments[0] == "s3" else ("s3api",)
    command = ("aws", "--endpoint-url", server.url, "--output", "json", *service, *map(str, arguments))
    said = _run(command, environment)
    return json.loads(said) if said.lstrip().startswith(("{", "[")) else None


def swift(server: SwiftEndpoint, *arguments: str | Path) -> str:
    """Run the `swift` command as the user of a server; returns its output."""
    if server.auth_version == "1":
        environment = {"ST_AUTH": server.auth_url, "ST_USER": server.user, "ST_KEY": server.key}
    else:
        environment = {
            "ST_AUTH_VERSION": "3",
            "OS_AUTH_URL": server.auth_url,
            "OS_USERNAME": server.user,
            "OS_PASSWORD": server.key,
            "OS_PROJECT_NAME": server.project or "",
            "OS_PROJECT_DOMAIN_NAME": server.project_domain or "",
            "OS_USER_DOMAIN_NAME": server.user_domain or "",
            "OS_REGION_NAME": server.region or "",
        }
    return _run((str(_SWIFT), *map(str, arguments)), environment)


def rclone(server: S3Endpoint, *arguments: str | Path) -> str:
    """Run rclone with the server as its remote `s3:`; returns its output."""
    environment = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_S3_TYPE": "s3",
        "RCLONE_CONFIG_S3_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S3_ENDPOINT": server.url,
        "RCLONE_CONFIG_S3_ACCESS_KEY_ID": server.access_key,
        "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": server.secret_key,
        "RCLONE_CONFIG_S3_REGION": server.region,
    }
    return _run(("rclone", *map(str, arguments)), environment)


def s3_names(server: S3Endpoint, *, bucket: str | None = None) -> set[str]:
    """All that is in a bucket, as rclone lists it; unfinished uploads as "key (upload)"."""
    where = f"s3:{bucket or server.bucket}"
    uploads = json.loads(rclone(server, "backend", "list-multipart-uploads", where))
    unfinished = {f"{upload['Key']} (upload)" for found in uploads.values() for upload in found or ()}
    return unfinished.union(rclone(server, "lsf", "--recursive", where).split())


def swift_names(server: SwiftEndpoint, *, container: str | None = None) -> set[str]:
    """The objects in a container, segments and all, as `swift` lists them."""
    return set(swift(server, "list", container or server.container).split())


def _run(command: tuple[str, ...], environment: Mapping[str, str]) -> str:
    foreign = ("ST_", "OS_", "AWS_", "RCLONE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**kept, **environment},
    )
    if done.returncode != 0:
        raise ServiceError(f"{Path(command[0]).name} failed ({done.returncode}): {done.stderr[-2000:]}")
    return done.stdout
