"""The stores of a campaign, past our drivers: what lies there, what its bytes are, and how to damage it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dataplane.store import MIB
from tests.services.s3_bucket import Bucket, bucket

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping

    from tests.services.ceph import Ceph

_RGW_DATA_POOL = "default.rgw.buckets.data"
_one_at_a_time = threading.Lock()
_WATCH_S = 12
"""How long Ceph takes a killed process for a user of its image. It is 30 otherwise, and many kills wait."""
_FS_IOC_FIEMAP = 0xC020660B
_ALWAYS_THERE = {"rbd_info", "rbd_directory", "rbd_children", "rbd_trash", "rbd_purge_trash", "rbd_task"}
"""In a pool that has ever had an image."""
_PROBE = ".glissade.probe"
"""A probe of the store's health writes and removes it; that of a killed daemon goes with the next one."""


class Shelf(Protocol):
    """One store, by an independent client."""

    name: str
    section: Mapping[str, object]
    """Its keys in the daemon's configuration."""

    def names(self) -> set[str]:
        """Everything that lies there, whether it is an image or not."""
        ...

    def is_passing(self, name: str) -> bool:
        """Whether a later probe takes it away: another node could be working with it now."""
        ...

    def digest(self, image_id: str) -> str:
        """The sha256 of what lies there under this name."""
        ...

    def put(self, image_id: str, data: bytes) -> None:
        """Lay something there that is none of the daemon's."""
        ...

    def remove(self, name: str) -> None:
        """Take away what `put` laid there, or what a daemon with a seeded bug left."""
        ...

    @property
    def damages(self) -> Mapping[str, Callable[[str, random.Random], None]]:
        """Ways to damage an image's bytes, by name."""
        ...


def _named(said: bytes) -> set[tuple[str, str]]:
    """The watches that rados speaks of: client and cookie."""
    return set(re.findall(r"(client\.\d+) cookie[= ](\d+)", said.decode()))


def _spoilt(data: bytes, kind: str, chance: random.Random) -> bytes:
    """One bit, one block or the end of it."""
    at = chance.randrange(len(data))
    if kind == "bit":
        return data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]
    if kind == "repeated" and len(data) >= 1024:
        at = chance.randrange(512, len(data) - 511)
        return data[:at] + data[:512] + data[at + 512 :]
    if kind == "zeroes":
        return data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]
    return data[:at]


class FileShelf:
    """A directory. `image`: the file that backs its file system, where there is one."""

    def __init__(
        self, name: str, root: Path, *, image: Path | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        self.name = name
        self.root = root
        self._image = image
        self.section: Mapping[str, object] = {
            "type": "file",
            "directories": [str(root)],
            "io_threads": 1,
            **(options or {}),
        }

    def names(self) -> set[str]:
        return set(os.listdir(self.root))

    def is_passing(self, name: str) -> bool:
        return False

    def digest(self, image_id: str) -> str:
        with (self.root / image_id).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def put(self, image_id: str, data: bytes) -> None:
        (self.root / image_id).write_bytes(data)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    @property
    def damages(self) -> Mapping[str, Callable[[str, random.Random], None]]:
        own: dict[str, Callable[[str, random.Random], None]] = {
            f"file {kind}": self._in_place(kind) for kind in ("bit", "repeated", "zeroes", "short")
        }
        return own if self._image is None else {**own, "backing file bit": self._below}

    def _in_place(self, kind: str) -> Callable[[str, random.Random], None]:
        def damage(image_id: str, chance: random.Random) -> None:
            path = self.root / image_id
            spoilt = _spoilt(path.read_bytes(), kind, chance)
            with path.open("r+b") as file:
                file.write(spoilt)
                file.truncate(len(spoilt))

        return damage

    def _below(self, image_id: str, chance: random.Random) -> None:
        """One bit on the medium, while the file system's cache may hold what it was."""
        if self._image is None:
            raise ValueError(f"{self.name}: nothing backs it")
        with (self.root / image_id).open("rb") as file:
            os.fsync(file.fileno())
            at = _physical(file.fileno(), chance.randrange(os.fstat(file.fileno()).st_size))
        with self._image.open("r+b") as medium:
            medium.seek(at)
            (byte,) = medium.read(1)
            medium.seek(at)
            medium.write(bytes((byte ^ 1 << chance.randrange(8),)))


def _physical(fd: int, at: int) -> int:
    """Where on its medium a byte of a file is. FIEMAP: linux/fiemap.h."""
    request = bytearray(struct.pack("=QQIIII", at, 1, 0, 0, 1, 0) + bytes(56))
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
    logical, physical, length = struct.unpack_from("=QQQ", request, 32)
    if not logical <= at < logical + length:
        raise AssertionError("the byte has no place on the medium")
    return int(physical + at - logical)


class _Rados:
    """The cluster's objects, below every gateway and image."""

    def __init__(self, ceph: Ceph) -> None:
        self._conf = str(ceph.conf)

    def run(self, *arguments: str, program: str = "rados", check: bool = True) -> bytes:
        done = subprocess.run(
            (program, "--conf", self._conf, *arguments), capture_output=True, check=False, timeout=120
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{program} {' '.join(arguments)}: {done.stderr.decode()[-400:]}")
        return done.stdout

    def names(self, pool: str) -> list[str]:
        return self.run("--pool", pool, "ls").decode().splitlines()

    def has(self, pool: str, name: str) -> bool:
        return bool(self.run("--pool", pool, "stat", name, check=False))

    def damage(self, pool: str, name: str, kind: str, chance: random.Random) -> None:
        with tempfile.NamedTemporaryFile(prefix="glissade-chaos-") as file:
            self.run("--pool", pool, "get", name, file.name)
            spoilt = _spoilt(Path(file.name).read_bytes(), kind, chance)
            Path(file.name).write_bytes(spoilt)
            self.run("--pool", pool, "put", name, file.name)


class S3Shelf:
    """A bucket, by botocore; its objects, by rados."""

    def __init__(self, name: str, ceph: Ceph, bucket: Bucket, place: Path) -> None:
        self.name = name
        secret = place / f"{name}-secret"
        secret.touch(mode=0o600)
        secret.write_text(ceph.s3.secret_key)
        self._bucket = bucket
        self._rados = _Rados(ceph)
        # In the gateway's pool lie the objects of all buckets, and of an image's copies in each of them.
        said = self._rados.run("bucket", "stats", "--bucket", bucket.name, program="radosgw-admin")
        self._marker: str = json.loads(said)["marker"]
        self._seen: set[str] = set()
        """What earlier copies were made of: the gateway collects it much later."""
        self.section: Mapping[str, object] = {
            "type": "s3",
            "endpoint": ceph.s3.url,
            "bucket": bucket.name,
            "access_key": ceph.s3.access_key,
            "secret_key": {"file": str(secret)},
            "region": ceph.s3.region,
            "addressing": "path",
            "multipart_threshold": 5 * MIB,
            "part": 5 * MIB,
            "probe_interval_s": 10.0,
        }

    def names(self) -> set[str]:
        uploads = {f"{key} (upload {upload})" for key, upload in self._bucket.uploads()}
        return self._bucket.objects() | uploads

    def is_passing(self, name: str) -> bool:
        return name.startswith((".glissade/probe-", ".glissade/probe (upload "))

    def digest(self, image_id: str) -> str:
        body = self._bucket.client.get_object(Bucket=self._bucket.name, Key=image_id)["Body"]
        return hashlib.sha256(body.read()).hexdigest()

    def put(self, image_id: str, data: bytes) -> None:
        self._bucket.client.put_object(Bucket=self._bucket.name, Key=image_id, Body=data)

    def remove(self, name: str) -> None:
        self._bucket.client.delete_object(Bucket=self._bucket.name, Key=name)

    @property
    def damages(self) -> Mapping[str, Callable[[str, random.Random], None]]:
        return {f"rados put {kind}": self._below(kind) for kind in ("bit", "repeated", "zeroes")}

    def _below(self, kind: str) -> Callable[[str, random.Random], None]:
        def damage(image_id: str, chance: random.Random) -> None:
            names = {
                name
                for name in self._rados.names(_RGW_DATA_POOL)
                if name.startswith(f"{self._marker}_") and image_id in name and ".glissade" not in name
            }
            # The head's name is the key's, those of parts belong to one upload.
            parts = {name for name in names if "__" in name}
            names, self._seen = names - self._seen, self._seen | parts
            with_bytes = [
                name
                for name in names
                if int(self._rados.run("--pool", _RGW_DATA_POOL, "stat", name).split()[-1]) > 0
            ]
            self._rados.damage(_RGW_DATA_POOL, chance.choice(sorted(with_bytes)), kind, chance)

        return damage


class RbdShelf:
    """A pool, by rbd; its objects, by rados."""

    def __init__(self, name: str, ceph: Ceph, pool: str) -> None:
        self.name = name
        self._pool = pool
        self._ceph = ceph
        self._rados = _Rados(ceph)
        self.section: Mapping[str, object] = {
            "type": "rbd",
            "pool": pool,
            "user": ceph.user,
            "conf_file": str(ceph.conf),
        }
        self._foreign = self._all()

    def names(self) -> set[str]:
        return self._all() - self._foreign

    def is_passing(self, name: str) -> bool:
        return False

    def objects(self) -> int:
        """How many RADOS objects there are: what no image owns any more shows when the last one is gone. A
        removed object of which a removed snapshot is still being trimmed is listed, and is none.
        """
        names = set(self._rados.names(self._pool)) - _ALWAYS_THERE - {_PROBE}
        return sum(self._rados.has(self._pool, name) for name in names)

    def empty(self) -> None:
        """Whatever is left; a process that was killed counts as an image's user for half a minute."""
        end = time.monotonic() + 150
        while names := self.names():
            for name in names:
                if name.endswith(" (trash)"):
                    self._rbd("trash", "rm", "--no-progress", name.split()[0])
                    continue
                with suppress(AssertionError):  # It has none, it is not protected, or only the name is left.
                    self._rbd("snap", "unprotect", f"{name}@snap")
                    self._rbd("snap", "purge", "--no-progress", name)
                try:
                    self._rbd("rm", "--no-progress", name)
                except AssertionError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(1)

    def _all(self) -> set[str]:
        trash = self._rbd("trash", "ls", "--all").decode().splitlines()
        return {*self._rbd("ls").decode().split(), *(f"{line} (trash)" for line in trash)}

    def digest(self, image_id: str) -> str:
        return hashlib.sha256(self._rbd("export", "--no-progress", image_id, "-")).hexdigest()

    def put(self, image_id: str, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(prefix="glissade-chaos-") as file:
            Path(file.name).write_bytes(data)
            self._rbd("import", "--no-progress", file.name, image_id)

    def remove(self, name: str) -> None:
        self._rbd("rm", "--no-progress", name)

    def forgotten_watches(self) -> int:
        """How many watches Ceph lists, and notifies nobody of. Takes 10 s for an image that somebody has
        open, or had until just now.

        Of a client that is killed while it opens an image such a watch may stay (with Ceph 16.2, 27 of 720).
        It has no time-out, blocklisting the client changes nothing, and `rbd rm` refuses the image because
        of it; see `let_ceph_look_again`.
        """
        return sum(len(self._listed(header) - self._told(header)) for header in self._watched())

    def watches(self) -> int:
        """How many Ceph lists."""
        return sum(len(self._listed(header)) for header in self._watched())

    def _watched(self) -> list[str]:
        headers = [name for name in self._rados.names(self._pool) if name.startswith("rbd_header.")]
        return [header for header in headers if self._listed(header)]

    def _listed(self, header: str) -> set[tuple[str, str]]:
        return _named(self._rados.run("--pool", self._pool, "listwatchers", header, check=False))

    def _told(self, header: str) -> set[tuple[str, str]]:
        """Who was notified; the program fails when one of them does not answer, and says which."""
        return _named(self._rados.run("--pool", self._pool, "notify", header, "?", check=False))

    def let_ceph_look_again(self) -> None:
        """What an operator does then: the OSD peers again, and all watches that it lists get a time-out."""
        self._ceph.ceph("osd", "down", "0")

    def say_who_watches(self) -> None:
        """Who has which image open, on the standard error: a watch can outlive everybody who could end it."""
        for name in sorted(self.names()):
            with suppress(AssertionError):
                print(f"{self.name}/{name}: {self._rbd('status', name).decode()}", file=sys.stderr)

    def _rbd(self, *arguments: str) -> bytes:
        return self._rados.run("--pool", self._pool, *arguments, program="rbd")

    @property
    def damages(self) -> Mapping[str, Callable[[str, random.Random], None]]:
        return {f"rados put {kind}": self._below(kind) for kind in ("bit", "repeated", "zeroes", "short")}

    def _below(self, kind: str) -> Callable[[str, random.Random], None]:
        def damage(image_id: str, chance: random.Random) -> None:
            said = self._rbd("info", "--format", "json", image_id).decode()
            prefix = said.partition('"block_name_prefix":"')[2].partition('"')[0]
            names = [name for name in self._rados.names(self._pool) if name.startswith(prefix)]
            self._rados.damage(self._pool, chance.choice(sorted(names)), kind, chance)

        return damage


@contextmanager
def ceph_shelves(ceph: Ceph, place: Path, *, pool: str | None = None) -> Iterator[list[Shelf]]:
    """A bucket of our own, and a pool in which nobody else does anything meanwhile."""
    images = RbdShelf("pool", ceph, pool or ceph.pools[1])
    with ExitStack() as stack:
        with _one_at_a_time:  # botocore makes clients in one thread only.
            made = stack.enter_context(bucket(ceph.s3))
        try:
            yield [S3Shelf("bucket", ceph, made, place), images]
        finally:
            images.empty()


@contextmanager
def quick_to_forget(ceph: Ceph) -> Iterator[None]:
    """Meanwhile the cluster waits less long for whoever was killed."""
    watch = ("osd", "osd_client_watch_timeout")
    ceph.ceph("config", "set", *watch, str(_WATCH_S))
    try:
        yield
    finally:
        ceph.ceph("config", "rm", *watch)


@contextmanager
def further_pools(ceph: Ceph, count: int) -> Iterator[list[str]]:
    """As many new pools, in which the daemon's user may do what it may in the cluster's own."""
    names = [f"chaos-{number}" for number in range(count)]
    client = f"client.{ceph.user}"
    (user,) = ceph.ceph("auth", "get", client)
    caps = [word for service, said in user["caps"].items() for word in (service, said)]
    further = "".join(f", profile rbd pool={name}" for name in names)
    widened = [
        word if word in ("mon", "osd", "mgr") or "pool=" not in word else word + further for word in caps
    ]
    try:
        for name in names:
            ceph.ceph("osd", "pool", "create", name, "8")
            ceph.rbd("pool", "init", name)
        ceph.ceph("auth", "caps", client, *widened)
        yield names
    finally:
        ceph.ceph("auth", "caps", client, *caps)
        for name in names:
            ceph.ceph("osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")
