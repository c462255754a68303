"""verify: read an image again, past every cache, and compare it with what is recorded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control.jobs.recipes.base import (
    expected_of,
    image_or_none,
    is_damaged_source,
    quarantined,
    request_of,
)
from control.jobs.report import StepReport
from control.jobs.requests import VerifyRequest
from dataplane.errors import GlissadeError
from dataplane.measure import measure
from drivers.location import key_of_location

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image, Location
    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services


class VerifyRecipe:
    """Every place is looked at, whatever the others are like. One whose bytes are not the image goes into
    quarantine, one whose bytes are comes out of it. Nothing is ever deleted.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        request = request_of(job, VerifyRequest)
        image = await image_or_none(tx, job, services)
        if image is None:
            return None
        stores = [request.store] if request.store else [place.store for place in image.locations]
        return services.first_unusable(reading=stores)

    async def run(self, run: Run) -> None:
        request = request_of(run.job, VerifyRequest)
        services = run.services
        image = await services.database.read(lambda tx: services.images.get(tx, run.job.image_id))
        services.images.check_readable(image)
        places = [image.require(request.store)] if request.store else list(image.locations)
        damaged: list[GlissadeError] = []
        failures: list[GlissadeError] = []
        for place in places:
            await run.record(f"reading {place.store}")
            try:
                await self._verify(run, image, place)
            except GlissadeError as error:
                if error.retryable:
                    raise
                if is_damaged_source(error, place.store):
                    damaged.append(await quarantined(run, image, place, error))
                run.report.add(StepReport.failed("verify", place.store, error, method="read"))
                failures.append(error)
        if damaged or failures:
            raise (*damaged, *failures)[0]

    async def _verify(self, run: Run, image: Image, place: Location) -> None:
        started = time.monotonic()
        expected = expected_of(image)
        measured = await measure(
            run.services.stores.get(place.store).driver,
            key_of_location(place.url),
            engine=run.services.engine,
            digests=(),
            bypass_cache=True,
            limits=run.limits(place.store),
            progress=run.progress,
            expected=expected,
        )
        compared = [*(["size"] if image.size_bytes is not None else []), *expected.digests]
        if place.quarantine is not None and compared:
            await run.record(
                "out of quarantine", work=lambda tx: run.services.images.release(tx, place.row_id)
            )
        run.report.size_bytes = measured.size_bytes
        run.report.digests.update(measured.digests)
        run.report.bytes_read += measured.size_bytes
        run.report.bytes_through += measured.size_bytes
        run.report.add(
            StepReport(
                step="verify",
                store=place.store,
                method="read",
                reason="" if expected.digests else "no digest is recorded; a hash job computes it",
                bytes_through=measured.size_bytes,
                seconds=time.monotonic() - started,
                verified=", ".join(compared),
            )
        )

    def written_stores(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        return ()

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        """Nothing: a verify changes nothing."""
