"""hash: compute the digests that the catalogue lacks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control.catalog.images import Content
from control.jobs.errors import NothingToDoError
from control.jobs.recipes.base import (
    expected_of,
    image_or_none,
    is_damaged_source,
    quarantined,
    request_of,
    wanted_digests,
)
from control.jobs.report import StepReport
from control.jobs.requests import HashRequest
from dataplane.errors import StoreError
from dataplane.measure import measure
from drivers.location import key_of_location

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services


class HashRecipe:
    """What is recorded is compared, what is missing is filled in; nothing that is recorded is ever
    overwritten. Recording is the point of no return: either the digests are there and the job has succeeded,
    or it was cancelled before. Checkpoint: `recorded`, when that is done.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        if job.published:
            return None
        request = request_of(job, HashRequest)
        image = await image_or_none(tx, job, services)
        return None if image is None else services.first_unusable_place(image, request.store)

    async def run(self, run: Run) -> None:
        if "recorded" in run.job.checkpoint:
            return  # By an attempt that was cut off before it could say so.
        request = request_of(run.job, HashRequest)
        services, images = run.services, run.services.images
        image = await services.database.read(lambda tx: images.get(tx, run.job.image_id))
        images.check_readable(image)
        if image.checksum is not None and image.os_hash_value is not None and image.size_bytes is not None:
            raise NothingToDoError(
                f"The image {image.id} has its size, checksum and {image.os_hash_algo} already."
            )
        place = services.place_to_read(image, request.store)
        md5, strong = wanted_digests(image, request.os_hash_algo or services.os_hash_algo)
        started = time.monotonic()
        await run.record(f"reading {place.store}")
        try:
            measured = await measure(
                services.stores.get(place.store).driver,
                key_of_location(place.url),
                engine=services.engine,
                digests=(md5, strong),
                limits=run.limits(place.store),
                progress=run.progress,
                expected=expected_of(image),
            )
        except StoreError as error:
            if is_damaged_source(error, place.store):
                raise await quarantined(run, image, place, error) from error
            raise
        content = Content(
            size_bytes=measured.size_bytes,
            checksum=measured.digests[md5],
            os_hash_algo=strong,
            os_hash_value=measured.digests[strong],
        )
        run.report.size_bytes = measured.size_bytes
        run.report.digests.update(measured.digests)
        run.report.bytes_read += measured.size_bytes
        run.report.bytes_through += measured.size_bytes
        run.report.add(
            StepReport(
                step="hash",
                store=place.store,
                method="read",
                bytes_through=measured.size_bytes,
                seconds=time.monotonic() - started,
                verified=", ".join(measured.digests),
            )
        )
        await run.publish(
            "recorded",
            stores=(),
            checkpoint={"recorded": True},
            work=lambda tx: images.fill_missing_content(tx, image.id, content),
        )

    def written_stores(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        return ()

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        """Nobody waits for a digest that will not come."""
        await services.images.forget_wanted_hash(tx, job.image_id)
