"""What was staged is removed when nobody needs it any more: by a durable job of its own, which cannot be
called off.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from control.catalog import staging
from control.jobs.model import JobKind, NewJob
from drivers.location import key_of_location

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.jobs.model import Job
    from control.jobs.services import Services


async def remove_staged(tx: AsyncConnection, job: Job, services: Services) -> None:
    """Have the bytes removed that were staged for the job's image, if there are any: only the very object
    that was staged, when the job has ended.
    """
    staged = await staging.give_up(tx, job.image_id)
    if staged is None:
        return
    new = NewJob(
        id=str(uuid.uuid4()),
        kind=JobKind.DELETE,
        image_id=job.image_id,
        request={"kind": JobKind.DELETE.value, "image_id": job.image_id, "store": staged.store},
        request_id=job.request_id,
        principal=job.principal,
        priority=job.priority,
        stores=(staged.store,),
    )
    target = {
        "row_id": staged.row_id,
        "store": staged.store,
        "key": key_of_location(staged.url),
        "url": staged.url,
        "identity": staged.content.identity,
        "gone": False,
    }
    await services.queue.add(tx, new, decided={"delete": [target]})
