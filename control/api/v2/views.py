"""Images and members as Glance's clients know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from control.api.context import CALLER, CONTEXT
from control.api.v2.access import target_of
from control.api.v2.schemas import RESERVED_PREFIX
from control.catalog.listing import describe
from control.jobs.model import JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from aiohttp import web
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image, Location
    from control.catalog.listing import DescribedImage
    from control.catalog.members import Member
    from control.config.settings import ImageSettings
    from control.jobs.model import Job
    from control.jobs.queue import JobQueue

_SHOWN_AS_IMPORT = (JobKind.IMPORT, JobKind.FILL, JobKind.REGISTER, JobKind.COPY, JobKind.MOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownImage:
    """What is needed to show an image: `job` is the last one that brought it somewhere."""

    described: DescribedImage
    job: Job | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What a caller is shown of an image's places. All else of an image is the same for all who see it."""

    stores: bool
    locations: bool


async def to_show(request: web.Request, tx: AsyncConnection, images: Sequence[Image]) -> list[ShownImage]:
    """All that is known about these images."""
    return await shown_of(request.app[CONTEXT].services.queue, tx, images)


async def shown_of(queue: JobQueue, tx: AsyncConnection, images: Sequence[Image]) -> list[ShownImage]:
    """The same; awaits nothing but the transaction."""
    described = await describe(tx, images)
    jobs = await queue.latest(tx, [image.id for image in images], _SHOWN_AS_IMPORT)
    return [ShownImage(described=one, job=jobs.get(one.image.id)) for one in described]


def sight_of(request: web.Request, image: Image) -> Sight:
    """Where a deactivated image lies is for administrators; the places themselves are shown if the
    configuration says so, and the policy to this caller.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    settings = context.images
    return Sight(
        stores=image.status != "deactivated" or caller.is_admin,
        locations=(settings.show_image_direct_url or settings.show_multiple_locations)
        and context.policy.allows(caller, "get_image_location", target_of(image, caller)),
    )


def image_view(request: web.Request, shown: ShownImage, sight: Sight | None = None) -> dict[str, Any]:
    """An image. Its custom properties are beside the attributes; those of ours that are named `os_glance*`
    tell how its last import or copy is getting on. The request's caller matters for `sight` only.
    """
    context = request.app[CONTEXT]
    image = shown.described.image
    sight = sight_of(request, image) if sight is None else sight
    view: dict[str, Any] = {
        name: value
        for name, value in shown.described.properties.items()
        if not name.startswith(RESERVED_PREFIX)
    }
    if shown.job is not None:
        view |= _progress_of(shown.job, image)
    places = context.services.stores.in_weight_order(image.locations) if sight.stores else []
    if places:
        view["stores"] = ",".join(dict.fromkeys(place.store for place in places))
    view |= {
        "id": image.id,
        "name": image.name,
        "status": image.status,
        "visibility": image.visibility,
        "protected": image.protected,
        "os_hidden": image.os_hidden,
        "owner": image.owner,
        "size": image.size_bytes,
        "virtual_size": image.virtual_size_bytes,
        "checksum": image.checksum,
        "os_hash_algo": image.os_hash_algo,
        "os_hash_value": image.os_hash_value,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "min_ram": image.min_ram,
        "min_disk": image.min_disk,
        "tags": [*shown.described.tags],
        "created_at": stamp(image.created_at),
        "updated_at": stamp(image.updated_at or image.created_at),
        "self": f"/v2/images/{image.id}",
        "file": f"/v2/images/{image.id}/file",
        "schema": "/v2/schemas/image",
    }
    if sight.locations:
        view |= _whereabouts(context.images, places)
    return view


def _whereabouts(settings: ImageSettings, places: Sequence[Location]) -> dict[str, Any]:
    """Where the bytes are, as far as the configuration lets it be shown: at these places."""
    view: dict[str, Any] = {}
    if settings.show_image_direct_url and places:
        view["direct_url"] = places[0].url
    if settings.show_multiple_locations:
        view["locations"] = [{"url": place.url, "metadata": dict(place.meta_data)} for place in places]
    return view


def _progress_of(job: Job, image: Image) -> Mapping[str, str]:
    """Which stores the job still brings the image to, and which it could not."""
    asked = job.request.get("stores") or [job.request.get("to_store")]
    stores = {str(store) for store in asked if store}
    if not (job.is_finished or job.published):  # What comes after publishing is clearing up.
        missing = stores - {place.store for place in image.locations}
        task = {"os_glance_import_task": job.id}
        if job.kind is JobKind.REGISTER:
            return task
        return {
            **task,
            "os_glance_importing_to_stores": ",".join(sorted(missing)),
            "os_glance_failed_import": "",
        }
    if job.kind is JobKind.REGISTER:
        return {}
    return {
        "os_glance_importing_to_stores": "",
        "os_glance_failed_import": ",".join(sorted(_failed(job, stores, image))),
    }


def _failed(job: Job, stores: set[str], image: Image) -> set[str]:
    """Where a job that has ended did not bring the image."""
    if job.state == JobState.IGNORED:
        return set()  # It was there already.
    if job.published:
        steps = (job.report or {}).get("steps", ())
        failed = {str(step["store"]) for step in steps if step["outcome"] != "ok"}
        return (failed & stores) - set(job.checkpoint.get("published", ()))
    return stores - {place.store for place in image.locations}


def stamp(at: datetime) -> str:
    """A time as the API shows it."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def member_view(member: Member) -> dict[str, Any]:
    """A member of an image."""
    return {
        "member_id": member.member,
        "image_id": member.image_id,
        "status": member.status,
        "created_at": stamp(member.created_at),
        "updated_at": stamp(member.updated_at or member.created_at),
        "schema": "/v2/schemas/member",
    }
