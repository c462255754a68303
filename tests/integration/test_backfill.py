"""`glissade image hash --missing`, against a daemon."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from control.cli.main import main
from tests.integration.in_process import Daemon, Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def place(root: Path) -> Place:
    return Place(root)


FORGET_HASH = "update images set os_hash_value = null where id = ?"
FORGET_CHECKSUM = "update images set checksum = null where id = ?"


def forget_digests(place: Place, *image_ids: str, how: str = FORGET_HASH) -> None:
    """As an old cloud's catalogue, or one whose background hash never came."""
    with sqlite3.connect(place.database) as db:
        db.executemany(how, [(one,) for one in image_ids])
    db.close()


async def run(daemon: Daemon, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """The command's exit code, and what it printed as JSON."""
    command = ["image", "hash", "--missing", "--socket", daemon.place.socket, "-f", "json", *arguments]
    code = await asyncio.to_thread(main, command)
    said = capsys.readouterr().out
    return int(code), json.loads(said) if said else None


async def test_what_lacks_a_digest_gets_it_and_nothing_else_is_read(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(place) as daemon:
        images = [await daemon.import_image(os.urandom(70_000 + at), "one", "two") for at in range(5)]
    forget_digests(place, *(one["id"] for one in images[:2]))
    forget_digests(place, images[2]["id"], how=FORGET_CHECKSUM)
    async with running(place) as daemon:
        code, said = await run(daemon, capsys, "--wait")
        assert (code, said["lacking"], said["states"]) == (0, 3, {"succeeded": 3})
        assert {job["image_id"] for job in said["jobs"]} == {one["id"] for one in images[:3]}
        now = [await daemon.get(f"/v1/images/{one['id']}") for one in images]
        assert [{k: one[k] for k in ("checksum", "os_hash_value")} for one in now] == [
            {k: one[k] for k in ("checksum", "os_hash_value")} for one in images
        ]
        assert await run(daemon, capsys, "--wait") == (
            0,
            {"lacking": 0, "accepted": 0, "states": {}, "jobs": []},
        )


async def test_only_in_one_store_and_never_twice(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(place) as daemon:
        here = await daemon.import_image(os.urandom(2_000_000), "one")
        there = await daemon.import_image(os.urandom(70_000), "two")
    forget_digests(place, here["id"], there["id"])
    place.stores["one"] = type(place.stores["one"])(rate_limit=200_000)
    async with running(place) as daemon:
        code, said = await run(daemon, capsys, "--store", "one")
        assert (code, [job["image_id"] for job in said["jobs"]]) == (0, [here["id"]])
        # Its job is under way, and is not doubled; the other one is left.
        code, said = await run(daemon, capsys)
        assert (code, [job["image_id"] for job in said["jobs"]]) == (0, [there["id"]])
        for job in (await daemon.get("/v1/jobs?kind=hash"))["jobs"]:
            await daemon.finished(job)
        assert (await run(daemon, capsys))[1]["lacking"] == 0


async def test_a_damaged_image_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(place) as daemon:
        image = await daemon.import_image(os.urandom(70_000), "one")
    forget_digests(place, image["id"])
    (place.directory("one") / image["id"]).write_bytes(os.urandom(70_000))
    async with running(place) as daemon:
        command = ["image", "hash", "--missing", "--wait", "--socket", place.socket]
        assert await asyncio.to_thread(main, command) == 1
        said = capsys.readouterr()
        assert f"{image['id']}: quarantined: The copy of image {image['id']} in one is damaged" in said.out
        assert "Images without a digest: 1. Jobs accepted: 1 (1 quarantined)." in said.err


async def test_one_image_or_the_missing_ones(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(place) as daemon:
        for wrong in ([], ["--missing", "8f5a1b1c-0000-4000-8000-000000000000"]):
            command = ["image", "hash", "--socket", daemon.place.socket, *wrong]
            assert await asyncio.to_thread(main, command) == 2
            assert "Give an image's ID or --missing." in capsys.readouterr().err
