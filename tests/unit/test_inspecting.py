"""What is refused while it comes in, and what is known of the rest."""

from __future__ import annotations

import random

import pytest

from control.jobs.errors import FormatMismatchError
from control.jobs.inspecting import Inspection
from tests.crafted_images import BAD, GOOD, MIB, Crafted, qcow2, vhdx, vmdk

CHUNK = 4 * MIB


async def inspect(
    content: bytes, disk_format: str, *, enforce: bool = True, piece: int = CHUNK
) -> Inspection:
    inspection = Inspection("image", disk_format, enforce=enforce)
    for at in range(0, len(content), piece):
        await inspection.see(memoryview(content)[at : at + piece])
    await inspection.end()
    return inspection


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 40


@pytest.mark.parametrize("piece", [CHUNK, 64 * 1024, 100_003])
@pytest.mark.parametrize("crafted", GOOD, ids=lambda crafted: crafted.name)
async def test_what_is_good_passes_and_its_size_is_known(crafted: Crafted, piece: int) -> None:
    inspection = await inspect(crafted.content, crafted.disk_format, piece=piece)
    assert inspection.is_decided
    assert inspection.virtual_size_bytes(len(crafted.content)) == crafted.virtual_size


@pytest.mark.parametrize("piece", [CHUNK, 64 * 1024, 100_003])
@pytest.mark.parametrize("crafted", BAD, ids=lambda crafted: crafted.name)
async def test_what_is_bad_is_refused(crafted: Crafted, piece: int) -> None:
    with pytest.raises(FormatMismatchError) as caught:
        await inspect(crafted.content, crafted.disk_format, piece=piece)
    assert caught.value.code == crafted.code, caught.value


@pytest.mark.parametrize("crafted", [*GOOD, *BAD], ids=lambda crafted: crafted.name)
async def test_nothing_is_refused_where_that_is_switched_off(crafted: Crafted) -> None:
    assert (await inspect(crafted.content, crafted.disk_format, enforce=False)).is_decided


END_COUNTS = ("footer", "streamed", "end", "marker", "cut short")


@pytest.mark.parametrize(
    "crafted",
    [one for one in (*GOOD, *BAD) if not any(word in one.name for word in END_COUNTS)],
    ids=lambda crafted: crafted.name,
)
async def test_what_follows_the_beginning_does_not_hide_it(crafted: Crafted) -> None:
    content = crafted.content + bytes(2 * MIB)
    if crafted.code is None:
        await inspect(content, crafted.disk_format)
    else:
        with pytest.raises(FormatMismatchError):
            await inspect(content, crafted.disk_format)


async def test_it_is_refused_before_the_rest_is_read() -> None:
    inspection = Inspection("image", "qcow2", enforce=True)
    with pytest.raises(FormatMismatchError):
        await inspection.see(memoryview(bytes(128 * 1024)))
    inspection = Inspection("image", "raw", enforce=True)
    with pytest.raises(FormatMismatchError):
        await inspection.see(memoryview(qcow2(length=2 * MIB)))


async def test_the_decision_needs_only_the_beginning() -> None:
    for disk_format, content in (
        ("raw", random.Random(3).randbytes(8 * MIB)),
        ("qcow2", qcow2(length=8 * MIB)),
    ):
        inspection = Inspection("image", disk_format, enforce=True)
        await inspection.see(memoryview(content)[: 4 * MIB])
        assert inspection.is_decided
        assert 0 < inspection.bytes_needed <= 2 * MIB


async def test_what_was_decided_is_known_to_another_attempt() -> None:
    before = await inspect(qcow2(), "qcow2")
    after = Inspection("image", "qcow2", enforce=True)
    after.trust(before.facts())
    await after.see(memoryview(b"what comes later in the image"))
    await after.end()
    assert after.virtual_size_bytes(12345) == before.virtual_size_bytes(12345) == 10 * MIB
    assert after.bytes_needed == before.bytes_needed


async def test_what_was_looked_at_as_something_else_is_not_trusted() -> None:
    facts = (await inspect(qcow2(), "qcow2")).facts()
    for disk_format, enforce in (("raw", True), ("qcow2", False)):
        after = Inspection("image", disk_format, enforce=enforce)
        after.trust(facts)
        assert after.seen_bytes is None
    old = Inspection("image", "qcow2", enforce=True)
    old.trust({name: facts[name] for name in ("bytes", "virtual_size", "as_large")})
    assert old.seen_bytes is None


async def test_nothing_is_known_of_what_comes_from_another_beginning() -> None:
    inspection = await inspect(qcow2(), "qcow2")
    inspection.begin()
    assert inspection.seen_bytes is None
    await inspection.see(memoryview(qcow2(backing=1024)))
    with pytest.raises(FormatMismatchError):
        await inspection.end()


async def test_what_the_parsers_keep_is_bounded() -> None:
    """Of images that make them look for something that never comes."""
    endless = vmdk(descriptor=b"a=b\n" * 5000).ljust(2 * MIB, b"a")
    for content in (vhdx(metadata_at=2**60), endless, b"a=b\n" * MIB):
        inspection = Inspection("image", "raw", enforce=False)
        await inspection.see(memoryview(content))
        kept = sum(size for parser in inspection._parsers for size in parser.context_info.values())
        assert kept <= 2 * MIB


async def test_nothing_of_the_image_gets_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(FormatMismatchError):
        await inspect(vmdk(more="\x1b[31mfilthy words\n"), "vmdk")
    assert "filthy" not in caplog.text
