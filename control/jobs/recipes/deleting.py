"""delete: remove an image, or its copy in one store.

The intent is committed first, with the identity of every object: from then on the image (or the place) is
out of sight and the job can only go forward. Gone already is as good as deleted; an object that has become
another one is kept and reported.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from control.catalog.errors import ImageNotFoundError
from control.jobs.audit import audit
from control.jobs.errors import LeaseLostError
from control.jobs.recipes.base import image_or_none, request_of
from control.jobs.report import StepReport
from control.jobs.requests import DeleteRequest
from dataplane.errors import GlissadeError, NotFoundError
from dataplane.failpoints import Arrow, fail_point
from drivers.location import key_of_location

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Location
    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services


class DeleteRecipe:
    """Checkpoint: `delete`, the list of what is to go (row_id, store, key, url, identity; `gone` when it
    was not there in the first place; `foreign` when it was never ours). A job for an image that is out of
    sight already is past its point of no return from the beginning.
    """

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        if "delete" in job.checkpoint:
            return services.first_unusable(deleting=[target["store"] for target in job.checkpoint["delete"]])
        request = request_of(job, DeleteRequest)
        image = await image_or_none(tx, job, services)
        places = await services.images.being_deleted(tx, job.image_id) if image is None else image.locations
        if places is None:
            return None
        stores = [request.store] if request.store else [place.store for place in places]
        return services.first_unusable(deleting=stores)

    async def run(self, run: Run) -> None:
        if "delete" not in run.job.checkpoint:
            await self._intend(run)
        request = request_of(run.job, DeleteRequest)
        targets: Sequence[Mapping[str, Any]] = run.job.checkpoint["delete"]
        failures: list[GlissadeError] = []
        for target in targets:
            try:
                await self._delete(run, target)
            except LeaseLostError:
                raise
            except GlissadeError as error:
                run.report.add(StepReport.failed("delete", target["store"], error))
                run.services.report_failure(error)
                failures.append(error)
        if failures:
            raise next((error for error in failures if error.retryable), failures[0])
        images = run.services.images
        if request.store is None:
            await run.record("gone", work=lambda tx: images.finish_delete(tx, run.job.image_id))
        else:
            row_id = targets[0]["row_id"]
            await run.record("gone", work=lambda tx: images.finish_location_delete(tx, row_id))

    async def _intend(self, run: Run) -> None:
        """Commit what is to be deleted, and take it out of sight."""
        request = request_of(run.job, DeleteRequest)
        services, images = run.services, run.services.images
        image = await services.database.read(lambda tx: images.find(tx, run.job.image_id))
        if image is not None:
            places = [image.require(request.store)] if request.store else list(image.locations)
        else:
            begun = await services.database.read(lambda tx: images.being_deleted(tx, run.job.image_id))
            if begun is None:
                raise ImageNotFoundError(f"There is no image {run.job.image_id}.")
            places = list(begun)
        targets = [await self._target(run, place) for place in places]

        async def hide(tx: AsyncConnection) -> None:
            if image is None:
                return  # An earlier job hid it and could not finish.
            if request.store is None:
                await images.begin_delete(tx, image.id)
            else:
                await images.begin_location_delete(tx, image.id, places[0].row_id)

        await run.publish("deleting", stores=(), checkpoint={"delete": targets}, work=hide)

    async def _target(self, run: Run, place: Location) -> dict[str, Any]:
        foreign = self._is_foreign(run, place)
        key = key_of_location(place.url)
        gone = False
        identity = None
        if not foreign:
            try:
                identity = (await run.services.stores.deletable(place.store).stat(key)).identity
            except NotFoundError:
                gone = True
        return {
            "row_id": place.row_id,
            "store": place.store,
            "key": key,
            "url": place.url,
            "identity": identity,
            "gone": gone,
            "foreign": foreign,
        }

    def _is_foreign(self, run: Run, place: Location) -> bool:
        """Whether the bytes were never ours: an image that goes as a whole leaves them where they are."""
        store = run.services.stores.get(place.store)
        return request_of(run.job, DeleteRequest).store is None and not store.driver.capabilities.writable

    async def _delete(self, run: Run, target: Mapping[str, Any]) -> None:
        services = run.services
        store, key = target["store"], target["key"]
        if target.get("foreign"):
            reason = "this type of store takes no images: they are somebody else's"
            run.report.add(StepReport(step="delete", store=store, method="kept", reason=reason))
            return
        driver = services.stores.deletable(store)
        users = await services.database.read(
            lambda tx: services.images.other_users_of(tx, target["url"], image_id=run.job.image_id)
        )
        if users or target["gone"]:
            method = "gone already" if target["gone"] else "kept"
            reason = f"image {users[0]} uses the same bytes" if users else ""
            run.report.add(StepReport(step="delete", store=store, method=method, reason=reason))
            return
        audit(
            "delete-image" if request_of(run.job, DeleteRequest).store is None else "delete-location",
            job=run.job.id,
            epoch=run.job.epoch,
            principal=run.job.principal,
            image=run.job.image_id,
            store=store,
            key=key,
            identity=target["identity"],
        )
        await run.confirm_lease()
        started = time.monotonic()
        try:
            await driver.delete(key, identity=target["identity"])
            fail_point(Arrow.DELETED)
            method = "deleted"
        except NotFoundError:
            method = "gone already"
        run.report.add(
            StepReport(step="delete", store=store, method=method, seconds=time.monotonic() - started)
        )

    def written_stores(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002 (the protocol's)
        return ()

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        """Nothing: a delete that has begun is past the point of no return."""
