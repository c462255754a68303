"""Deleting an image at once, whatever is being done with it: it is out of sight when the transaction commits,
what works on it is told to stop, and a durable job removes its bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control.catalog import editing, metadata, staging
from control.catalog.errors import ImageProtectedError
from control.jobs.batches import settle
from control.jobs.errors import CancelTooLateError, JobFinishedError
from control.jobs.model import JobKind, JobState, NewJob
from control.jobs.recipes import RECIPES

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image
    from control.jobs.model import Job
    from control.jobs.services import Services


@dataclass(slots=True)
class Erased:
    """The jobs that were stopped while they ran, and all whose rows changed; by id."""

    running: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


async def erase(
    tx: AsyncConnection, image: Image, services: Services, *, request_id: str, principal: str
) -> Erased:
    """Delete the image in this transaction. Raises `ImageProtectedError`, and `DeleteNotAllowedError` for a
    store from which nothing may be deleted.
    """
    _check(image, services)
    erased = Erased()
    # Jobs first, then the image: in the order of those that publish.
    await _stop(tx, image.id, services, erased)
    now = await services.images.find(tx, image.id, lock=True)
    # Whoever accepts a job holds the image's row, and so is done now or will find the image gone. What was
    # accepted between the look and the lock is new: it is not likely to be publishing, and if it is, one of
    # us is told to begin again.
    is_being_deleted = await _stop(tx, image.id, services, erased)
    if now is not None:
        now = await services.images.find(tx, image.id)
    if now is None:
        # It went with the job that was to bring its bytes.
        await metadata.drop_all(tx, image.id)
        return erased
    _check(now, services)
    stores = [place.store for place in now.locations]
    if (staged := await staging.find(tx, now.id)) is not None:
        stores.append(staged.store)
    await editing.hide(tx, now.id, has_places=bool(stores))
    if stores and not is_being_deleted:
        new = NewJob(
            id=str(uuid.uuid4()),
            kind=JobKind.DELETE,
            image_id=now.id,
            request={"kind": JobKind.DELETE.value, "image_id": now.id},
            request_id=request_id,
            principal=principal,
            stores=tuple(dict.fromkeys(store for store in stores if store)),
        )
        # The image is gone for everybody: nobody can call this off, and it never gives up.
        await services.queue.add(tx, new, decided={})
        erased.changed.append(new.id)
    return erased


async def _stop(tx: AsyncConnection, image_id: str, services: Services, erased: Erased) -> bool:
    """Stop what is being done with the image, or is to be; whether its deletion has begun. One that has not
    is stopped too: it could still be called off, or give up.
    """
    is_being_deleted = False
    for job in await services.queue.unfinished(tx, image_id):
        if not job.published:
            if job.id not in erased.changed:
                await _cancel(tx, job, services, erased)
        elif job.kind is JobKind.DELETE and job.request.get("store") is None:
            is_being_deleted = True
    return is_being_deleted


def _check(image: Image, services: Services) -> None:
    if image.protected:
        raise ImageProtectedError(f"Image {image.id} is protected and cannot be deleted.")
    for place in image.locations:
        if place.store in services.stores and services.stores.get(place.store).driver.capabilities.writable:
            services.stores.deletable(place.store)


async def _cancel(tx: AsyncConnection, job: Job, services: Services, erased: Erased) -> None:
    try:
        noted = await services.queue.request_cancel(tx, job.id)
    except (JobFinishedError, CancelTooLateError):
        return  # It was quicker; the delete comes after it.
    erased.changed.append(job.id)
    if noted.state is JobState.RUNNING:
        erased.running.append(job.id)
        return
    ended = await services.queue.end_queued(tx, noted, JobState.CANCELLED, "cancelled: the image was deleted")
    await RECIPES[ended.kind].given_up(tx, ended, services)
    erased.changed.extend(await settle(tx, ended, services))
