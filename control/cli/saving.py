"""`glissade image save`: bytes to a file that appears only when they were right."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from control.cli import output
from control.cli.client import quoted
from control.cli.exits import CommandError, Exit, UnreachableError, WrongUseError
from control.cli.waiting import open_display

if TYPE_CHECKING:
    import http.client
    from collections.abc import Iterator

    from control.cli.client import Json
    from control.cli.options import Session

_CHUNK_BYTES = 4 * 1024 * 1024
_HAVE_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promise:
    """What the image has to be, as far as the catalogue knows."""

    size_bytes: int | None
    digests: dict[str, str]


def save(session: Session, image_id: str, target: str, *, store: str | None, force: bool) -> Exit:
    """Fetch, check, and only then let the file appear. Raises `CommandError` with nothing left of what
    was written.
    """
    path = f"/v1/images/{quoted(image_id)}"
    to_stdout = target == "-"
    if to_stdout and sys.stdout.isatty():
        raise WrongUseError(
            "An image's bytes are nothing for a terminal.", hint="Redirect the output, or name a FILE."
        )
    if not to_stdout:
        _refuse_existing(target, force=force)
    image = session.client.get(path)
    with ExitStack() as stack:
        sink: BinaryIO = (
            sys.stdout.buffer if to_stdout else stack.enter_context(_part_file(target, force=force))
        )
        with session.client.open(
            f"{path}/data", query={"store": store}, accept="application/octet-stream"
        ) as response:
            promise = _promise(image, response)
            measured = _receive(session, image, response, sink, promise)
        _check(session, promise, measured)
        if to_stdout:
            sink.flush()
        else:
            sink.flush()
            os.fsync(sink.fileno())
            _appear(target, force=force)
    if not to_stdout:
        _tell(session, image, target, measured)
    return Exit.OK


def _refuse_existing(target: str, *, force: bool) -> None:
    if os.path.isdir(target):
        raise WrongUseError(f"{target} is a directory.", hint="Name the file to write.")
    if not force and os.path.lexists(target):
        raise WrongUseError(
            f"{target} exists already.", hint="Choose another name, or overwrite it with --force."
        )


@contextmanager
def _part_file(target: str, *, force: bool) -> Iterator[BinaryIO]:
    """`FILE.part`, created by us; gone afterwards unless it has become FILE."""
    part = f"{target}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(part, flags | (os.O_TRUNC if force else os.O_EXCL), 0o666)
    except FileExistsError:
        raise WrongUseError(
            f"{part} exists: another save is running, or was cut off.",
            hint="If none is running, use --force.",
        ) from None
    except OSError as error:
        raise CommandError(f"Cannot write {part}: {error.strerror}.") from error
    try:
        with open(descriptor, "wb", buffering=0) as file:
            yield file
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


def _promise(image: Json, response: http.client.HTTPResponse) -> _Promise:
    """From the answer's headers, which go with these bytes, and from the image for what they do not say."""
    digests: dict[str, str] = {}
    if md5 := response.getheader("X-Glissade-Md5") or image.get("checksum"):
        digests["md5"] = str(md5).strip().lower()
    algorithm = image.get("os_hash_algo")
    value = response.getheader("X-Glissade-Os-Hash") or image.get("os_hash_value")
    if value:
        named, colon, digest = str(value).strip().lower().rpartition(":")
        algorithm = named if colon else algorithm
        if algorithm:
            digests[str(algorithm)] = digest
    length = response.getheader("Content-Length")
    size = int(length) if length is not None and length.isdigit() else None
    recorded = image.get("size")
    if size is not None and recorded is not None and size != recorded:
        raise CommandError(
            f"The daemon offers {size} bytes, but the catalogue says {recorded}.",
            hint=f"Check the image: glissade image verify {image.get('id')}",
        )
    return _Promise(size_bytes=size if size is not None else recorded, digests=digests)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    size_bytes: int
    digests: dict[str, str]


def _receive(
    session: Session, image: Json, response: http.client.HTTPResponse, sink: BinaryIO, promise: _Promise
) -> _Measured:
    """Everything to the sink, and at the same time to the digests, each in a thread of its own (hashlib
    lets go of the GIL).
    """
    hashes = _hashes(promise)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    done = 0
    display = open_display(quiet=session.quiet)
    shown: Json = {"id": image.get("id"), "kind": "save", "state": "running"}
    try:
        with ThreadPoolExecutor(max_workers=max(1, len(hashes))) as threads:
            while size := response.readinto(buffer):
                data = buffer[:size]
                hashing = [threads.submit(item.update, data) for item in hashes.values()]
                try:
                    _write_all(sink, data)
                finally:
                    for work in hashing:
                        work.result()
                done += size
                moving = {"phase": "reading", "size_bytes": promise.size_bytes, "bytes_done": done}
                display.update({**shown, "progress": moving})
    finally:
        display.close()
    return _Measured(size_bytes=done, digests={name: item.hexdigest() for name, item in hashes.items()})


def _hashes(promise: _Promise) -> dict[str, _Hash]:
    hashes: dict[str, _Hash] = {}
    for name in promise.digests:
        with suppress(ValueError):
            hashes[name] = hashlib.new(name, usedforsecurity=False)
    return hashes


def _write_all(sink: BinaryIO, data: memoryview) -> None:
    while data:
        try:
            data = data[sink.write(data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(f"Cannot write the image: {error.strerror}. Nothing was kept.") from error


def _check(session: Session, promise: _Promise, measured: _Measured) -> None:
    if promise.size_bytes is not None and measured.size_bytes != promise.size_bytes:
        raise UnreachableError(
            f"The daemon stopped after {measured.size_bytes} of {promise.size_bytes} bytes; none is kept.",
            hint="See why: journalctl -u glissade -n 50. Then try again.",
        )
    for name, digest in measured.digests.items():
        if digest != promise.digests[name]:
            raise CommandError(
                f"What came is not the image: {name} {digest}, expected {promise.digests[name]}.",
                hint="Check the image with: glissade image verify ID",
            )
    if not measured.digests:
        session.say(
            "The catalogue has no digest of this image that can be computed here: only its size was checked."
        )


def _appear(target: str, *, force: bool) -> None:
    part = f"{target}.part"
    if force:
        os.replace(part, target)
        return
    try:
        # Unlike rename, a link does not overwrite what may have appeared meanwhile.
        os.link(part, target)
    except FileExistsError:
        raise WrongUseError(f"{target} has appeared meanwhile.", hint="Overwrite it with --force.") from None
    except OSError as error:
        if error.errno not in _HAVE_NO_LINKS:
            raise
        _refuse_existing(target, force=False)
        os.rename(part, target)


def _tell(session: Session, image: Json, target: str, measured: _Measured) -> None:
    if session.as_json:
        output.print_json(
            {
                "image_id": image.get("id"),
                "file": os.path.abspath(target),
                "size_bytes": measured.size_bytes,
                "digests": measured.digests,
            }
        )
        return
    output.print_line(f"Saved image {image.get('id')} as {target}")
    output.print_fields(
        [("size", output.exact_size_text(measured.size_bytes)), *measured.digests.items()], indent="  "
    )
