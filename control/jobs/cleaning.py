"""Clears away what attempts left in the stores: after a failure, after a crash, and the marks after a
success.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from control.jobs.errors import InternalError
from dataplane.errors import GlissadeError, UnavailableError
from dataplane.store import Driver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.services import Services

log = logging.getLogger(__name__)

_PATIENCE_S = 20.0
"""A store that needs longer to forget an attempt is asked again later."""


async def clear_attempts(
    services: Services,
    job: Job,
    stores: Sequence[str],
    *,
    through: int,
    since: int | None = None,
    spare: Mapping[str, str] | None = None,
) -> list[GlissadeError]:
    """Remove what the job's attempts up to number `through` left in these stores (from `since` on; by default
    from the first that was not cleared); returns why it did not work everywhere. `spare`: by store, the name
    of the attempt that will be gone on with.

    An object that was published stays, only the attempt's marks go. Touches nothing that the attempts did
    not make. In a store whose configuration is gone nothing can be cleared until it is back.
    """
    epochs = range(job.cleaned_epoch + 1 if since is None else since, through + 1)
    if not stores or not epochs:
        return []
    keep = await services.database.read(lambda tx: _published_stores(services, tx, job))
    failures: list[GlissadeError] = []
    for store_id in stores:
        try:
            driver = services.stores.get(store_id).driver
            if not isinstance(driver, Driver):
                continue  # Takes no writes, so nothing of ours is there.
            async with asyncio.timeout(_PATIENCE_S):
                for epoch in epochs:
                    attempt = job.attempt(epoch)
                    if spare is None or spare.get(store_id) != attempt:
                        await driver.clear_attempt(job.image_id, attempt, keep_object=store_id in keep)
        except TimeoutError:
            failures.append(
                UnavailableError(
                    f"{store_id}: did not clear an attempt in {_PATIENCE_S:.0f} s.", store=store_id
                )
            )
        except GlissadeError as error:
            failures.append(error)
        except Exception:
            log.exception("Job %s: a defect in Glissade while clearing up in %s", job.id, store_id)
            failures.append(
                InternalError(f"{store_id}: clearing up failed; the daemon's log has the details.")
            )
    for failure in failures:
        log.warning("Job %s: could not clear up, will try again: %s", job.id, failure)
        services.report_failure(failure)
    return failures


async def _published_stores(services: Services, tx: AsyncConnection, job: Job) -> set[str]:
    """Where the object must stay: what the job published, and whatever the catalogue points to."""
    current = await services.queue.get(tx, job.id)
    published = set(current.checkpoint.get("published", ()))
    return published | await services.images.stores_of(tx, job.image_id)
