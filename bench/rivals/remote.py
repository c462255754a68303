"""Who else puts images into servers and gets them out again: command lines and glance_store's drivers.

Every rival's objects have the image's id as their name, as ours have. Credentials go to them through the
environment or a file that nobody else reads. What a rival wrote is taken away by `Bucket`, `Container` and
`Pool`, which also compare what lies there with its source, by a program that is not ours.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from bench.measure import run_children, run_program, run_programs
from bench.model import BenchError
from bench.rivals import GLANCE_STORE, RCLONE, RIVALS_PYTHON, WORKER
from bench.services import SwiftServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bench.model import Sample
    from bench.services import RbdServer, S3Server, Services

Command: TypeAlias = "list[str | Path]"
SWIFT = RIVALS_PYTHON.with_name("swift")
BARE_COPY = Path(__file__).with_name("bare_copy.py")
_IN_USE_S = 120.0
QEMU_RBD = "usr/lib/*/qemu/block-rbd.so"


class RemoteRival(Protocol):
    """Puts files into a server under the names of images, and gets them into a directory."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        ...

    def put(self, sources: Mapping[str, Path]) -> Sample:
        """Put all at once, measured."""
        ...

    def get(self, image: str, directory: Path) -> Sample:
        """Get one into the directory, measured."""
        ...


class Place(Protocol):
    """Where images lie, seen by a foreign program."""

    def holds(self, image: str, source: Path) -> bool | None:
        """Whether the image is what the file is; None where no program can tell here."""
        ...

    def clear(self, images: Sequence[str]) -> None:
        """Remove these images, whoever wrote them and however far."""
        ...


@dataclass(frozen=True)
class Bucket:
    """The bucket of an S3 server, through rclone."""

    server: S3Server

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RCLONE_S3_PROVIDER": "Ceph",
            "RCLONE_S3_ENDPOINT": self.server.url,
            "RCLONE_S3_REGION": self.server.region,
            "RCLONE_S3_ACCESS_KEY_ID": self.server.access_key,
            "RCLONE_S3_SECRET_ACCESS_KEY": self.server.secret_key,
            "RCLONE_S3_NO_CHECK_BUCKET": "true",
            "AWS_CA_BUNDLE": "",  # rclone 1.60 does not start with one.
        }

    def remote(self, image: str) -> str:
        return f":s3:{self.server.bucket}/{image}"

    def make(self) -> None:
        """Make the bucket unless it is there."""
        environment = {**self.environment, "RCLONE_S3_NO_CHECK_BUCKET": "false"}
        _quiet([*RCLONE, "mkdir", self.remote("")], environment)

    def holds(self, image: str, source: Path) -> bool | None:
        return _same([*RCLONE, "cat", self.remote(image)], source, self.environment)

    def clear(self, images: Sequence[str]) -> None:
        for image in images:
            _quiet([*RCLONE, "deletefile", self.remote(image)], self.environment, check=False)


@dataclass(frozen=True)
class Container:
    """The container of a Swift account, through swiftclient's command line."""

    server: SwiftServer

    @property
    def environment(self) -> dict[str, str]:
        return {"ST_AUTH": self.server.auth_url, "ST_USER": self.server.user, "ST_KEY": self.server.key}

    @property
    def segments(self) -> str:
        """The container that the command line puts segments into."""
        return f"{self.server.container}_segments"

    def make(self) -> None:
        """Make the container unless it is there."""
        _quiet([SWIFT, "post", self.server.container], self.environment)

    def holds(self, image: str, source: Path) -> bool | None:
        command: Command = [SWIFT, "download", "--output", "-", self.server.container, image]
        return _same(command, source, self.environment)

    def clear(self, images: Sequence[str]) -> None:
        for image in images:
            _quiet([SWIFT, "delete", self.server.container, image], self.environment, check=False)


@dataclass(frozen=True)
class Pool:
    """A pool of RBD images, through `rbd`."""

    server: RbdServer
    pool: str

    @property
    def command(self) -> list[str]:
        return ["rbd", "-c", self.server.conf_file, "--id", self.server.user]

    def holds(self, image: str, source: Path) -> bool | None:
        return _same([*self.command, "export", "--no-progress", f"{self.pool}/{image}", "-"], source, {})

    def clear(self, images: Sequence[str]) -> None:
        """Raises `BenchError` for one that stays: a clone that is made independent is in use for long."""
        for image in images:
            name = f"{self.pool}/{image}"
            ends = time.monotonic() + _IN_USE_S
            while self._is_there(name):
                if time.monotonic() > ends:
                    raise BenchError(f"rbd cannot remove {name}")
                for verb in (("snap", "unprotect", f"{name}@snap"), ("snap", "purge", name), ("rm", name)):
                    _quiet([*self.command, *verb], {}, check=False)

    def _is_there(self, name: str) -> bool:
        done = subprocess.run([*self.command, "info", name], check=False, capture_output=True)
        return done.returncode != errno.ENOENT


@dataclass(frozen=True)
class RcloneS3:
    """rclone on S3. `one_put`: it sends images whole, which it does not sign then, and computes no md5: the
    best of its settings on plain http."""

    bucket: Bucket
    server_pids: Sequence[int]
    one_put: bool = False

    @property
    def name(self) -> str:
        return "rclone, whole objects" if self.one_put else "rclone"

    def missing(self) -> str | None:
        return None if shutil.which("rclone") else "not installed (apt package rclone)"

    @property
    def _options(self) -> list[str]:
        return ["--s3-upload-cutoff", "4G", "--s3-disable-checksum"] if self.one_put else []

    def put(self, sources: Mapping[str, Path]) -> Sample:
        command = [*RCLONE, *self._options]
        if len(sources) == 1:
            ((image, path),) = sources.items()
            return self._run([*command, "copyto", path, self.bucket.remote(image)])
        (base,) = {path.parent for path in sources.values()}
        at_once = str(min(len(sources), 8))
        return self._run([*command, "copy", "--transfers", at_once, base, self.bucket.remote("")])

    def get(self, image: str, directory: Path) -> Sample:
        return self._run([*RCLONE, "copyto", self.bucket.remote(image), directory / image])

    def _run(self, command: Sequence[str | Path]) -> Sample:
        environment = self.bucket.environment
        return run_program(command, environment=environment, server_pids=self.server_pids)


@dataclass(frozen=True)
class AwsCli:
    """`aws s3 cp`. `unsigned`: without signing bodies, and with parts of 16 MiB: the best of its settings on
    plain http."""

    bucket: Bucket
    server_pids: Sequence[int]
    directory: Path
    """For its configuration."""
    unsigned: bool = False

    @property
    def name(self) -> str:
        return "aws cli, unsigned" if self.unsigned else "aws cli"

    def missing(self) -> str | None:
        return None if shutil.which("aws") else "not installed (apt package awscli)"

    @cached_property
    def _environment(self) -> dict[str, str]:
        configuration = self.directory / f"{self.name}.conf"
        lines = ["[default]", "s3 =", "  addressing_style = path"]
        if self.unsigned:
            lines += ["  payload_signing_enabled = false", "  multipart_chunksize = 16MB"]
        configuration.write_text("\n".join(lines) + "\n")
        server = self.bucket.server
        found = {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": server.region,
            "AWS_CONFIG_FILE": str(configuration),
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if self.unsigned:
            found |= dict.fromkeys(
                ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"), "when_required"
            )
        return found

    def put(self, sources: Mapping[str, Path]) -> Sample:
        if len(sources) == 1:
            ((image, path),) = sources.items()
            return self._run(["cp", path, self._url(image)])
        (base,) = {path.parent for path in sources.values()}
        return self._run(["cp", "--recursive", base, self._url("")])

    def get(self, image: str, directory: Path) -> Sample:
        return self._run(["cp", self._url(image), directory / image])

    def _url(self, image: str) -> str:
        return f"s3://{self.bucket.server.bucket}/{image}"

    def _run(self, words: Sequence[str | Path]) -> Sample:
        command = ["aws", "--endpoint-url", self.bucket.server.url, "s3", *words, "--quiet"]
        return run_program(command, environment=self._environment, server_pids=self.server_pids)


@dataclass(frozen=True)
class SwiftClient:
    """`swift upload` in segments of 200 MiB, four at once, as a static large object; md5 of every segment."""

    container: Container
    server_pids: Sequence[int]
    name: str = "swiftclient"

    def missing(self) -> str | None:
        return None if SWIFT.exists() else "its environment .venv-rivals is not made (make bench makes it)"

    def put(self, sources: Mapping[str, Path]) -> Sample:
        options = ["-S", str(200 << 20), "--segment-threads", "4", "--use-slo", "--quiet"]
        container = self.container.server.container
        each: list[Command] = [
            [SWIFT, "upload", *options, "--object-name", image, container, path]
            for image, path in sources.items()
        ]
        return self._run(each)

    def get(self, image: str, directory: Path) -> Sample:
        container = self.container.server.container
        return self._run([[SWIFT, "download", "--quiet", "--output", directory / image, container, image]])

    def _run(self, each: Sequence[Sequence[str | Path]]) -> Sample:
        environment = self.container.environment
        return run_programs(each, environment=environment, server_pids=self.server_pids)


@dataclass(frozen=True)
class RbdCli:
    """`rbd import` and `rbd export`, a process for each image, all at once."""

    pool: Pool
    server_pids: Sequence[int]
    name: str = "rbd import/export"

    def missing(self) -> str | None:
        return None if shutil.which("rbd") else "not installed (apt package ceph-common)"

    def put(self, sources: Mapping[str, Path]) -> Sample:
        each: list[Command] = [
            [*self.pool.command, "import", "--no-progress", path, f"{self.pool.pool}/{image}"]
            for image, path in sources.items()
        ]
        return run_programs(each, server_pids=self.server_pids)

    def get(self, image: str, directory: Path) -> Sample:
        command: Command = [
            *self.pool.command,
            "export",
            "--no-progress",
            f"{self.pool.pool}/{image}",
            directory / image,
        ]
        return run_program(command, server_pids=self.server_pids)


@dataclass(frozen=True)
class QemuRbd:
    """`qemu-img convert` to and from RBD, out of order and with 8 requests under way."""

    pool: Pool
    server_pids: Sequence[int]
    name: str = "qemu-img"

    def missing(self) -> str | None:
        if not shutil.which("qemu-img"):
            return "not installed (apt package qemu-utils)"
        has_rbd = any(Path("/").glob(QEMU_RBD))
        return None if has_rbd else "it has no RBD here (apt package qemu-block-extra)"

    def put(self, sources: Mapping[str, Path]) -> Sample:
        each: list[Command] = [[*self._command, path, self._url(image)] for image, path in sources.items()]
        return run_programs(each, server_pids=self.server_pids)

    def get(self, image: str, directory: Path) -> Sample:
        command: Command = [*self._command, self._url(image), directory / image]
        return run_program(command, server_pids=self.server_pids)

    @property
    def _command(self) -> list[str]:
        return ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-W", "-m", "8"]

    def _url(self, image: str) -> str:
        server = self.pool.server
        return f"rbd:{self.pool.pool}/{image}:id={server.user}:conf={server.conf_file}"


@dataclass(frozen=True)
class RemoteGlanceStore:
    """glance_store's driver of this type, called as Glance calls it: one image after the other, md5 and
    sha512 with every add. Getting digests nothing and writes a file."""

    driver: str
    options: Mapping[str, object]
    url: str
    """Where an image is, `{}` being its id."""
    server_pids: Sequence[int]
    directory: Path
    """For what it is told."""
    name: str = "glance_store"

    def missing(self) -> str | None:
        if (why := GLANCE_STORE.missing()) is not None or self.driver != "rbd":
            return why
        bindings = subprocess.run([RIVALS_PYTHON, "-c", "import rbd"], check=False, capture_output=True)
        return None if bindings.returncode == 0 else "its environment has no bindings for RBD"

    def put(self, sources: Mapping[str, Path]) -> Sample:
        return self._run("add", {image: str(path) for image, path in sources.items()})

    def get(self, image: str, directory: Path) -> Sample:
        return self._run("save", {image: self.url.format(image)}, directory=str(directory))

    def _run(self, verb: str, images: Mapping[str, str], **more: object) -> Sample:
        call = {"verb": verb, "driver": self.driver, "options": self.options, "images": images, **more}
        with _private_file(
            self.directory / "call.json", json.dumps({**call, "server_pids": self.server_pids})
        ) as file:
            return run_children(RIVALS_PYTHON, [[WORKER, f"@{file}"]])


def glance_s3(services: Services, directory: Path) -> RemoteGlanceStore:
    """On the bucket; `directory` likewise for the others."""
    server = services.need_s3()
    return RemoteGlanceStore(
        driver="s3",
        options={
            "s3_store_host": server.url,
            "s3_store_region_name": server.region,
            "s3_store_access_key": server.access_key,
            "s3_store_secret_key": server.secret_key,
            "s3_store_bucket": server.bucket,
            "s3_store_bucket_url_format": "path",
        },
        url=f"s3://{server.url.partition('://')[2]}/{server.bucket}/{{}}",
        server_pids=services.server_pids,
        directory=directory,
    )


def glance_rbd(services: Services, directory: Path) -> RemoteGlanceStore:
    """On the first pool. Raises `BenchError` when the cluster does not answer."""
    server = services.need_rbd()
    return RemoteGlanceStore(
        driver="rbd",
        options={
            "rbd_store_pool": server.pool,
            "rbd_store_user": server.user,
            "rbd_store_ceph_conf": server.conf_file,
        },
        url=f"rbd://{_fsid(server)}/{server.pool}/{{}}/snap",
        server_pids=services.server_pids,
        directory=directory,
    )


def _fsid(server: RbdServer) -> str:
    command = ["ceph", "-c", server.conf_file, "--id", server.user, "fsid"]
    return _quiet(command, {}).strip()


def bare_copy(
    services: Services,
    server: S3Server | SwiftServer,
    key: str,
    to: str,
    directory: Path,
    *,
    part_bytes: int | None = None,
) -> Sample:
    """The server's own copy of an image into another bucket or container (bench/rivals/bare_copy.py), without
    anything around it. `part_bytes`: of S3, copied in parts of this size."""
    call = {
        "kind": "swift" if isinstance(server, SwiftServer) else "s3",
        "server": asdict(server),
        "key": key,
        "to": to,
        "part_bytes": part_bytes,
        "server_pids": services.server_pids,
    }
    with _private_file(directory / "call.json", json.dumps(call)) as file:
        return run_children(RIVALS_PYTHON, [[BARE_COPY, f"@{file}"]])


@contextmanager
def _private_file(file: Path, content: str) -> Iterator[Path]:
    file.touch(mode=0o600, exist_ok=False)
    try:
        file.write_text(content)
        yield file
    finally:
        file.unlink()


def _same(command: Sequence[str | Path], source: Path, environment: Mapping[str, str]) -> bool | None:
    """Whether what the command prints is what the file holds; None when it is not installed."""
    if shutil.which(command[0]) is None:
        return None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as reading:
        compared = subprocess.run(
            ["cmp", "--silent", "-", source], stdin=reading.stdout, check=False, capture_output=True
        )
    return compared.returncode == 0 and reading.returncode == 0


def _quiet(command: Sequence[str | Path], environment: Mapping[str, str], *, check: bool = True) -> str:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if check and done.returncode != 0:
        raise BenchError(f"{command[0]} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
