"""copy: put an image into further stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.jobs.errors import NothingToDoError
from control.jobs.recipes.base import (
    image_or_none,
    is_damaged_source,
    missing_digests,
    must_read,
    proof_of,
    quarantined,
    request_of,
)
from control.jobs.requests import CopyRequest
from control.jobs.run import new_places
from dataplane.errors import StoreError
from dataplane.terms import VerifyMode
from dataplane.transfer import transfer
from drivers.location import key_of_location

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services


class CopyRecipe:
    """Stores that hold the image already are left as they are; the others get it from one place that
    answers, in one read.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        request = request_of(job, CopyRequest)
        image = await image_or_none(tx, job, services)
        if image is None or job.published:
            return None
        missing = [store for store in request.stores if image.in_store(store) is None]
        if not missing:
            return None
        blocked = [services.first_unusable(adding=[store]) for store in missing]
        enough = not any(blocked) if request.all_stores_must_succeed else not all(blocked)
        if not enough:
            return next(store for store in blocked if store)
        return services.first_unusable_place(image, request.from_store)

    async def run(self, run: Run) -> None:
        if run.job.published:
            return  # Only the marks were left.
        request = request_of(run.job, CopyRequest)
        services, images = run.services, run.services.images
        image = await services.database.read(lambda tx: images.get(tx, run.job.image_id))
        images.check_readable(image)
        missing = [store for store in request.stores if image.in_store(store) is None]
        if not missing:
            raise NothingToDoError(f"The image {image.id} is in {', '.join(request.stores)} already.")
        old = services.place_to_read(image, request.from_store)
        source = services.stores.get(old.store).driver
        verify = VerifyMode(request.verify)
        if old.quarantine is not None and verify is VerifyMode.NONE:
            verify = VerifyMode.INLINE  # Only if its bytes are right again.
        destinations = run.destinations(missing, all_must_succeed=request.all_stores_must_succeed)
        await run.intend("transfer", destinations)
        try:
            done = await transfer(
                source,
                key_of_location(old.url),
                destinations,
                engine=services.engine,
                digests=missing_digests(image, services.os_hash_algo),
                expected=proof_of(image),
                must_read=must_read(image, verify) or old.quarantine is not None,
                verify=verify,
                all_must_succeed=request.all_stores_must_succeed,
                limits=run.limits(old.store),
                progress=run.progress,
                checkpoints=run.checkpoints(),
                resume=run.resume,
            )
        except StoreError as error:
            if is_damaged_source(error, old.store):
                raise await quarantined(run, image, old, error) from error
            raise
        run.take_in(done)
        places = new_places(done.outcomes)
        content = run.content(image, done, services.os_hash_algo)

        async def publish(tx: AsyncConnection) -> None:
            for place in places:
                await images.add_location(tx, image.id, place)
            await images.fill_missing_content(tx, image.id, content)

        await run.publish("published", stores=[place.store for place in places], work=publish)

    def written_stores(self, job: Job) -> tuple[str, ...]:
        return tuple(request_of(job, CopyRequest).stores)

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        """Nothing: accepting a copy changes no image."""
