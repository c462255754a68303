"""What tests of the Images API ask a daemon for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.integration.in_process import Daemon

_LONGEST_S = 50.0
_PAUSE_S = 0.02


async def new_image(daemon: Daemon, **more: object) -> str:
    """An image without bytes; its id."""
    body = {"name": "an image", "disk_format": "raw", "container_format": "bare", **more}
    reply = await daemon.call("POST", "/v2/images", body)
    assert reply.status == 201, reply.body
    return str(reply.json["id"])


async def show(daemon: Daemon, image_id: str) -> Any:
    """The image, as a client sees it."""
    return await daemon.get(f"/v2/images/{image_id}")


async def until(daemon: Daemon, image_id: str, **wanted: object) -> Any:
    """The image, as soon as it has these values."""
    image: Any = None
    try:
        async with asyncio.timeout(_LONGEST_S):
            while True:
                image = await show(daemon, image_id)
                if all(image.get(name) == value for name, value in wanted.items()):
                    return image
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise AssertionError(f"never became {wanted}: {image}") from None


async def tasks(daemon: Daemon, image_id: str) -> Any:
    """Its tasks, the newest first."""
    return (await daemon.get(f"/v2/images/{image_id}/tasks"))["tasks"]


async def task_ended(daemon: Daemon, image_id: str, number: int = 1) -> Any:
    """The newest of so many tasks, when it has ended."""
    found: Any = None
    try:
        async with asyncio.timeout(_LONGEST_S):
            while True:
                found = await tasks(daemon, image_id)
                if len(found) == number and found[0]["status"] in ("success", "failure"):
                    return found[0]
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        raise AssertionError(f"no {number} tasks of which the last has ended: {found}") from None
