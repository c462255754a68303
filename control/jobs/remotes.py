"""Images of other Glances: found by the service catalogue of the token with which an import was asked for,
described and read with that token.

The address is the catalogue's, never a user's, so the rules for users' URLs do not hold here; nothing is
redirected.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from control.catalog.tables import images
from control.jobs.errors import RemoteImageError
from dataplane.digests import KNOWN_ALGORITHMS, digest_length
from dataplane.errors import GlissadeError, NotFoundError, UnavailableError
from dataplane.store import Capabilities, Filled, ObjectInfo, ReadOptions, StoreSpace
from dataplane.terms import Expected
from drivers.http.config import HttpConfig
from drivers.http.driver import HttpSource
from drivers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from control.jobs.requests import RemoteImage
    from dataplane.store import ReadStream, Source
    from drivers.options import StoreOptions

_NAME: Final = "import:glance"
_MOST_BYTES: Final = 4 * 1024 * 1024
"""Of the description of one image."""
_DESCRIBED_WITHIN_S: Final = 60.0
LONGEST_NAME: Final = 255
LONGEST_VALUE_BYTES: Final = 65_535
MOST_PROPERTY_BYTES: Final = 256 * 1024
"""What custom properties may be: as much as users may say with the Images API, and no more."""
_RESERVED_PREFIX: Final = "os_glance"
_NO_PROPERTIES: Final = frozenset(images.c.keys()) | {
    "tags", "self", "file", "schema", "location", "locations", "direct_url", "stores",
}  # fmt: skip
_WHOLE: Final = ReadOptions()


class Tokens(Protocol):
    """What is done with the tokens of those who ask for imports."""

    async def seal(self, token: str, *, about: str) -> str:
        """The token in a form that may be kept: only we can open it, and only as what it is `about`."""
        ...

    async def unseal(self, sealed: str, *, about: str) -> str | None:
        """The token; None when it was sealed by somebody else, or about something else."""
        ...

    async def image_service(self, token: str, *, region: str, interface: str) -> str | None:
        """Where the catalogue of this token says that images are served; empty when it does not say. None for
        a token that is not good (any more). Raises a retryable error when nobody can be asked.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the other Glance says that its image is, as far as it is taken over."""

    disk_format: str
    container_format: str
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenImage:
    """An image of another Glance: where to read it, and what its bytes must turn out to be."""

    source: Source
    key: str
    expected: Expected
    declared: Declared


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRules:
    """What is taken over from other Glances: properties that begin like this, and images of these formats
    that are not too large. An image gets no more than `max_properties` with those that it has. `ca_file` is
    for all of them.
    """

    property_prefixes: tuple[str, ...]
    disk_formats: tuple[str, ...]
    container_formats: tuple[str, ...]
    max_size_bytes: int
    max_properties: int
    ca_file: str | None = None


class RemoteImages:
    """Opens images of other Glances; stateless."""

    def __init__(
        self,
        tokens: Tokens,
        rules: RemoteRules,
        options: StoreOptions,
        *,
        wrap: Callable[[Source, StoreOptions], Source],
    ) -> None:
        self._tokens = tokens
        self._rules = rules
        self._options = options
        self._wrap = wrap
        self._config = HttpConfig(
            guard=False, max_redirects=0, ca_file=rules.ca_file, max_size_bytes=rules.max_size_bytes
        )

    async def seal(self, token: str, image_id: str) -> str:
        """The token of who asks for an import into this image, to be kept with the job."""
        return await self._tokens.seal(token, about=image_id)

    @asynccontextmanager
    async def open(
        self, wanted: RemoteImage, image_id: str, *, has: Mapping[str, str]
    ) -> AsyncIterator[OpenImage]:
        """The image that is wanted, for an import into `image_id`, which has these properties. Raises
        `RemoteImageError`, and a `StoreError`: `UnavailableError` also when nobody can be asked about the
        token.
        """
        token = await self._tokens.unseal(wanted.sealed_token, about=image_id)
        if token is None:
            raise RemoteImageError(
                "The token with which the import was asked for cannot be opened here.",
                hint="Import the image again; all nodes need the same [api.keystone].",
            )
        address = await self._address(token, wanted)
        if address is None:
            raise RemoteImageError(
                "The token with which the import was asked for is no longer good.",
                hint="Import the image again with a new one.",
            )
        if not address:
            raise RemoteImageError(
                f"The service catalogue has no {wanted.interface} endpoint for images in the region"
                f" {wanted.region}."
            )
        made = HttpSource(_NAME, self._config, self._options, credentials={"X-Auth-Token": Secret(token)})
        source = self._wrap(made, self._options)
        try:
            place = f"{address.rstrip('/').removesuffix('/v2').rstrip('/')}/v2/images/{wanted.image_id}"
            said = await _described(source, place, wanted)
            size_bytes = _size_bytes(said, wanted)
            yield OpenImage(
                source=source if size_bytes else _Nothing(),
                key=f"{place}/file",
                expected=Expected(size_bytes=size_bytes, digests=_digests(said)),
                declared=self._declared(said, wanted, has),
            )
        finally:
            await source.aclose()

    async def _address(self, token: str, wanted: RemoteImage) -> str | None:
        try:
            return await self._tokens.image_service(token, region=wanted.region, interface=wanted.interface)
        except GlissadeError as error:
            if not error.retryable:
                raise
            # Its own class is for those who ask the API. To a job this is one more service that is away.
            raise UnavailableError(error.message, store=_NAME, hint=error.hint) from error

    def _declared(self, said: Mapping[str, Any], wanted: RemoteImage, has: Mapping[str, str]) -> Declared:
        disk_format, container_format = said.get("disk_format"), said.get("container_format")
        known = disk_format in self._rules.disk_formats and container_format in self._rules.container_formats
        if not known:
            raise RemoteImageError(
                f"The image {wanted.image_id} in {wanted.region} has the formats {_shown(disk_format)} and"
                f" {_shown(container_format)}, which are not used here."
            )
        properties = {
            name: value
            for name, value in said.items()
            if isinstance(value, str)
            and name.startswith(self._rules.property_prefixes)
            and name not in _NO_PROPERTIES
            and not name.startswith(_RESERVED_PREFIX)
        }
        for name, value in properties.items():
            if problem := _problem(name, value):
                raise RemoteImageError(
                    f"The property {_shown(name)} of the image {wanted.image_id} in {wanted.region} cannot be"
                    f" taken over: {problem}."
                )
        self._require_room(properties, wanted, has)
        return Declared(
            disk_format=str(disk_format),
            container_format=str(container_format),
            properties=properties,
        )

    def _require_room(
        self, properties: Mapping[str, str], wanted: RemoteImage, has: Mapping[str, str]
    ) -> None:
        """Raises `RemoteImageError` when the image would have more properties than it may. What it has too
        many of already may stay, as with the API.
        """
        together = {**has, **properties}
        if len(together) > max(self._rules.max_properties, len(has)):
            raise RemoteImageError(
                f"With the properties of the image {wanted.image_id} in {wanted.region} there would be"
                f" {len(together)}; an image may have {self._rules.max_properties}.",
                hint="See images.max_properties and images.glance_download_properties.",
            )
        size_bytes = _text_bytes(together)
        if size_bytes > max(MOST_PROPERTY_BYTES, _text_bytes(has)):
            raise RemoteImageError(
                f"With the properties of the image {wanted.image_id} in {wanted.region} there would be"
                f" {size_bytes} bytes of them; an image may have {MOST_PROPERTY_BYTES}.",
                hint="See images.glance_download_properties.",
            )


async def _described(source: Source, place: str, wanted: RemoteImage) -> Mapping[str, Any]:
    """What the other Glance says of its image, which is active. Raises `RemoteImageError`, `StoreError`."""
    text = bytearray()
    try:
        async with (
            asyncio.timeout(_DESCRIBED_WITHIN_S),
            source.open_read(place, ReadOptions(accept_unknown_size=True)) as stream,
        ):
            room = memoryview(bytearray(64 * 1024))
            while size := (await stream.read_into(room)).size_bytes:
                text += room[:size]
                if len(text) > _MOST_BYTES:
                    raise RemoteImageError("The other service's description of the image is too long.")
    except NotFoundError as error:
        raise RemoteImageError(
            f"There is no image {wanted.image_id} in {wanted.region}, or it is not to be seen with the token"
            " with which the import was asked for."
        ) from error
    except TimeoutError as error:
        raise UnavailableError(
            f"The other service took more than {_DESCRIBED_WITHIN_S:.0f} s to describe the image"
            f" {wanted.image_id} in {wanted.region}.",
            store=_NAME,
        ) from error
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise RemoteImageError("The other service's description of the image cannot be understood.")
    if said.get("status") != "active":
        raise RemoteImageError(
            f"The image {wanted.image_id} in {wanted.region} is {_shown(said.get('status'))}, not active."
        )
    return said


def _shown(said: object) -> str:
    """What the other Glance says, fit for an error's text and a log."""
    return ascii(said[:40])[1:-1] if isinstance(said, str) else "unknown"


def _problem(name: str, value: str) -> str:
    """Why our catalogue, or our users, cannot have this property; empty when they can."""
    if "\0" in name or "\0" in value:
        return "it holds a NUL character"
    try:
        name.encode()
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        return "it holds half a character"
    if len(name) > LONGEST_NAME:
        return f"its name is longer than {LONGEST_NAME} characters"
    return f"it is longer than {LONGEST_VALUE_BYTES} bytes" if size_bytes > LONGEST_VALUE_BYTES else ""


def _text_bytes(properties: Mapping[str, str]) -> int:
    return sum(len(name.encode()) + len(value.encode()) for name, value in properties.items())


def _size_bytes(said: Mapping[str, Any], wanted: RemoteImage) -> int:
    size_bytes = said.get("size")
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
        raise RemoteImageError(f"The size of the image {wanted.image_id} in {wanted.region} is not known.")
    return size_bytes


def _digests(said: Mapping[str, Any]) -> dict[str, str]:
    """Those that can be held against the bytes; a Glance that has not computed them yet has none."""
    algorithm = said.get("os_hash_algo")
    recorded = {"md5": said.get("checksum"), str(algorithm): said.get("os_hash_value")}
    return {
        name: value.lower()
        for name, value in recorded.items()
        if name in KNOWN_ALGORITHMS
        and isinstance(value, str)
        and re.fullmatch(rf"[0-9a-fA-F]{{{digest_length(name)}}}", value)
    }


class _Nothing:
    """The source of an image without bytes: a Glance answers 204 for it."""

    lend = None

    name = _NAME
    capabilities = Capabilities(ranged_read=False, writable=False, deletable=False)
    info = ObjectInfo(key="", size_bytes=0)

    async def probe(self) -> StoreSpace:
        return StoreSpace()

    async def stat(self, key: str) -> ObjectInfo:
        return ObjectInfo(key=key, size_bytes=0)

    @asynccontextmanager
    async def open_read(self, key: str, options: ReadOptions = _WHOLE) -> AsyncIterator[ReadStream]:  # noqa: ARG002 (the protocol's)
        yield self

    async def read_into(self, buffer: memoryview) -> Filled:  # noqa: ARG002 (the protocol's)
        return Filled(0)

    async def finish(self) -> None:
        """There is nothing that could have changed."""

    async def aclose(self) -> None:
        """Nothing is open."""
