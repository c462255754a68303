"""What other Glances say of their images, held against what our own may be (`control/jobs/remotes.py`)."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from control.api.errors import AuthUnavailableError
from control.api.v2 import patches, schemas
from control.jobs import remotes as remotes_module
from control.jobs.errors import RemoteImageError
from control.jobs.remotes import (
    LONGEST_NAME,
    LONGEST_VALUE_BYTES,
    MOST_PROPERTY_BYTES,
    RemoteImages,
    RemoteRules,
)
from control.jobs.report import describe_error
from control.jobs.requests import RemoteImage
from control.jobs.retrying import rule_of
from dataplane.errors import UnavailableError
from drivers.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from control.jobs.remotes import Declared

SAID = {"status": "active", "size": 1000, "disk_format": "raw", "container_format": "bare"}
FULL = {f"own_{number}": "x" for number in range(7)}


class Tokens:
    """Those of a Keystone whose catalogue has one Glance in it; `trouble`: it is away."""

    def __init__(self, url: str, trouble: Exception | None = None) -> None:
        self.url = url
        self.trouble = trouble

    async def seal(self, token: str, *, about: str) -> str:
        return f"{about}{token}"

    async def unseal(self, sealed: str, *, about: str) -> str | None:
        return sealed.removeprefix(about)

    async def image_service(self, token: str, *, region: str, interface: str) -> str | None:
        if self.trouble is not None:
            raise self.trouble
        return self.url


@asynccontextmanager
async def glance(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The address of one that describes its images like this."""
    app = web.Application()
    app.router.add_get("/v2/images/{id}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def declared(tokens: Tokens, *, has: Mapping[str, str] | None = None) -> Declared:
    rules = RemoteRules(
        property_prefixes=("hw_", "location"),
        disk_formats=("raw",),
        container_formats=("bare",),
        max_size_bytes=2**40,
        max_properties=8,
    )
    opener = RemoteImages(tokens, rules, StoreOptions(), wrap=lambda source, _: source)
    image_id = str(uuid.uuid4())
    sealed = await opener.seal("token", image_id)
    wanted = RemoteImage(region="far", image_id=str(uuid.uuid4()), sealed_token=sealed)
    async with opener.open(wanted, image_id, has=has or {}) as image:
        return image.declared


async def taken_over(said: Mapping[str, Any], *, has: Mapping[str, str] | None = None) -> Declared:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(said)

    async with glance(answer) as url:
        return await declared(Tokens(url), has=has)


def test_properties_may_be_what_users_may_say_of_their_own_images() -> None:
    assert (LONGEST_NAME, LONGEST_VALUE_BYTES) == (schemas.LONGEST_NAME, schemas.LONGEST_PROPERTY_BYTES)
    assert MOST_PROPERTY_BYTES == patches._MOST_PROPERTY_BYTES


async def test_properties_at_the_limits_are_taken_over() -> None:
    longest = {
        "hw_" + "n" * (LONGEST_NAME - 3): "",
        "hw_value": "x" * LONGEST_VALUE_BYTES,
        "hw_text": "\u00fc\n",
    }
    others = {"hw_number": 5, "location": "x", "colour": "red\0"}
    assert (await taken_over({**SAID, **longest, **others})).properties == longest


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("hw_x", "a\0b", "NUL"),
        ("hw_\0", "x", "NUL"),
        ("hw_x", "\ud800", "half a character"),
        ("hw_\udfff", "x", "half a character"),
        ("hw_" + "x" * LONGEST_NAME, "x", "its name is longer"),
        ("hw_x", "\u00fc" * (LONGEST_VALUE_BYTES // 2 + 1), "longer than 65535 bytes"),
    ],
)
async def test_properties_that_nobody_could_give_an_image_are_refused(
    name: str, value: str, why: str
) -> None:
    with pytest.raises(RemoteImageError, match=why) as refused:
        await taken_over({**SAID, name: value})
    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()


async def test_an_image_gets_no_more_properties_than_it_may_have() -> None:
    assert (await taken_over({**SAID, "hw_a": "x"}, has=FULL)).properties == {"hw_a": "x"}
    with pytest.raises(RemoteImageError, match=r"would be 9; an image may have 8") as refused:
        await taken_over({**SAID, "hw_a": "x", "hw_b": "x"}, has=FULL)
    assert rule_of(refused.value).again is False
    # Others of the same names are no more; what was too many before (the limit was higher) may stay.
    too_many = {**FULL, "own_8": "x", "own_9": "x", "hw_a": "old"}
    assert (await taken_over({**SAID, "hw_a": "new"}, has=too_many)).properties == {"hw_a": "new"}
    with pytest.raises(RemoteImageError, match="would be 11"):
        await taken_over({**SAID, "hw_b": "x"}, has=too_many)


async def test_the_properties_of_an_image_get_no_larger_than_they_may_be() -> None:
    large = {f"hw_{number}": "x" * 60_000 for number in range(4)}
    assert (await taken_over({**SAID, **large})).properties == large
    with pytest.raises(RemoteImageError, match="bytes of them"):
        await taken_over({**SAID, **large}, has={"own": "x" * 30_000})
    assert (await taken_over({**SAID, **large}, has={"hw_0": "x" * 60_000})).properties == large


@pytest.mark.parametrize("field", ["status", "disk_format", "container_format"])
@pytest.mark.parametrize("value", ["x\ud800", "a\0b", "\x1b[2J\nJob 1: done", "x" * 100_000, ["x"], None])
async def test_what_the_other_side_says_is_fit_for_errors_and_logs(field: str, value: object) -> None:
    with pytest.raises(RemoteImageError) as refused:
        await taken_over({**SAID, field: value})
    said = str(refused.value)
    assert (said.isascii(), said.isprintable(), len(said) < 400) == (True, True, True)


async def test_a_keystone_that_is_away_is_asked_again_later() -> None:
    tokens = Tokens("", AuthUnavailableError("Keystone failed (ConnectFailure).", hint="Try again."))
    with pytest.raises(UnavailableError, match="ConnectFailure") as away:
        await declared(tokens)
    assert rule_of(away.value).again is True
    assert describe_error(away.value)["store"] == "import:glance"


async def test_a_description_that_drips_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotes_module, "_DESCRIBED_WITHIN_S", 0.3)

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(60):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    async with glance(drip) as url:
        with pytest.raises(UnavailableError, match="to describe the image") as slow:
            await declared(Tokens(url))
    assert rule_of(slow.value).again is True
