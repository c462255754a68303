"""What a job would do if it were submitted now: by which method each store would get the image, why, and how
many bytes that brings through the daemon. Asking changes nothing.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from control.jobs.errors import CannotPlanError, SourceNotAllowedError
from control.jobs.recipes.base import expected_of, must_read
from control.jobs.recipes.moving import old_place
from control.jobs.requests import CopyRequest, ImportRequest, MoveRequest
from dataplane.errors import AccessDeniedError, AddressRefusedError, InvalidKeyError, StoreFullError
from dataplane.plan import STREAM
from dataplane.planning import Planned, plan_transfer
from dataplane.store import Intent
from dataplane.terms import VerifyMode
from drivers.health import Use
from drivers.location import key_of_location

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from control.catalog.images import Image, Location
    from control.jobs.services import Services
    from dataplane.errors import GlissadeError
    from dataplane.planning import TransferPlan
    from dataplane.store import Source

PlannedRequest: TypeAlias = ImportRequest | CopyRequest | MoveRequest

NO_METHOD = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Afterwards:
    """What becomes of the place that the image is read from; `store` is None for an import."""

    store: str | None
    deleted: bool
    reason: str
    error: GlissadeError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """What the job would do. `verify` is what it checks in the new places."""

    image_id: str | None
    size_bytes: int | None
    must_read: bool
    bytes_read: int | None
    bytes_through: int | None
    verify: VerifyMode
    destinations: tuple[Planned, ...]
    source: Afterwards


async def plan_job(request: PlannedRequest, services: Services) -> JobPlan:
    """Ask source and destinations, and tell. A store that cannot be used now is not asked.

    Raises the same as the job would before it begins, what the source answers when it is asked for the
    object, and `UnavailableError` when the source cannot be read now.
    """
    match request:
        case ImportRequest():
            return await _plan_import(request, services)
        case CopyRequest():
            image = await _image(request.image_id, services)
            return await _plan_copy(request, image, services)
        case MoveRequest():
            image = await _image(request.image_id, services)
            return await _plan_move(request, image, services)


async def _plan_import(request: ImportRequest, services: Services) -> JobPlan:
    source, key = services.sources.find(request.source)
    verify = VerifyMode(request.verify)
    asked = _Asked(services, request.image.id or str(uuid.uuid4()), request.stores, there=None)
    with _named_by_client():
        plan = await asked.plan(
            source,
            key,
            intent=Intent.COPY,
            must_read=True,
            verify=verify,
            digests_known=bool(request.expected.digests),
            size_bytes=request.expected.size_bytes,
        )
    source_after = Afterwards(store=None, deleted=False, reason="an import leaves its source as it is")
    return _job_plan(request.image.id, request.expected.size_bytes, asked, plan, verify, source_after)


@contextmanager
def _named_by_client() -> Iterator[None]:
    """What is wrong with the name of a source is wrong with the request: no store of ours has failed."""
    try:
        yield
    except InvalidKeyError as error:
        raise CannotPlanError(error.message, hint=error.hint) from error
    except (AccessDeniedError, AddressRefusedError) as error:
        raise SourceNotAllowedError(error.message, hint=error.hint) from error


async def _plan_copy(request: CopyRequest, image: Image, services: Services) -> JobPlan:
    verify = VerifyMode(request.verify)
    place = services.place_to_read(image, request.from_store)
    asked = _Asked(services, image.id, request.stores, there=image)
    plan = await asked.plan_image(image, place, intent=Intent.COPY, verify=verify)
    source_after = Afterwards(store=place.store, deleted=False, reason="a copy leaves its source as it is")
    return _job_plan(image.id, image.size_bytes, asked, plan, verify, source_after)


async def _plan_move(request: MoveRequest, image: Image, services: Services) -> JobPlan:
    verify = VerifyMode.READBACK
    asked = _Asked(services, image.id, [request.to_store], there=image)
    if image.in_store(request.to_store) is not None:
        kept = Afterwards(store=request.from_store, deleted=False, reason="nothing is moved")
        return _job_plan(image.id, image.size_bytes, asked, None, verify, kept)
    place = old_place(image, request)
    services.stores.deletable(place.store)
    plan = await asked.plan_image(image, place, intent=Intent.MOVE, verify=verify)
    users = await services.database.read(
        lambda tx: services.images.other_users_of(tx, place.url, image_id=image.id)
    )
    source_after = Afterwards(
        store=place.store,
        deleted=not users,
        reason=(
            f"image {users[0]} uses the same bytes"
            if users
            else "once the new place is durable, checked and published"
        ),
        error=services.why_unusable(place.store, Use.DELETE),
    )
    return _job_plan(image.id, image.size_bytes, asked, plan, verify, source_after)


class _Asked:
    """The destinations of one plan: those that can be asked, and what is known of the others."""

    def __init__(self, services: Services, key: str, stores: Sequence[str], *, there: Image | None) -> None:
        self._services = services
        self._key = key
        self._stores = stores
        self.known: dict[str, Planned] = {}
        for store in stores:
            services.stores.writable(store)
            if there is not None and there.in_store(store) is not None:
                self.known[store] = _not_done(store, "it holds the image already")
            elif (obstacle := services.why_unusable(store, Use.ADD)) is not None:
                self.known[store] = _not_done(store, "it was not asked", obstacle)

    async def plan_image(
        self, image: Image, place: Location, *, intent: Intent, verify: VerifyMode
    ) -> TransferPlan | None:
        """The plan for an image of the catalogue, read from this place."""
        obstacle = self._services.why_unusable(place.store, Use.READ)
        if obstacle is not None:
            raise obstacle
        return await self.plan(
            self._services.stores.get(place.store).driver,
            key_of_location(place.url),
            intent=intent,
            must_read=must_read(image, verify),
            verify=verify,
            digests_known=bool(expected_of(image).digests),
            size_bytes=image.size_bytes,
        )

    async def plan(
        self,
        source: Source,
        key: str,
        *,
        intent: Intent,
        must_read: bool,
        verify: VerifyMode,
        digests_known: bool,
        size_bytes: int | None,
    ) -> TransferPlan | None:
        """None when there is nothing to ask: the source is left alone then, too."""
        stores = [self._services.stores.writable(store) for store in self._stores if store not in self.known]
        if not stores:
            return None
        made = await plan_transfer(
            source,
            key,
            stores,
            new_key=self._key,
            intent=intent,
            must_read=must_read,
            read_back=verify is VerifyMode.READBACK,
            digests_known=digests_known,
            size_bytes=size_bytes,
        )
        size = made.info.size_bytes if made.info.size_bytes is not None else size_bytes
        self.known |= {one.store: self._with_space(one, size) for one in made.destinations}
        return made

    def in_order(self) -> tuple[Planned, ...]:
        return tuple(self.known[store] for store in self._stores)

    def _with_space(self, planned: Planned, size: int | None) -> Planned:
        """What the store would say of an image that is larger than its free space."""
        free = self._services.health.status(planned.store).free_bytes
        if planned.error is not None or planned.method != STREAM or None in (size, free):
            return planned
        if (size or 0) <= (free or 0):
            return planned
        full = StoreFullError(
            f"{planned.store}: has {free} bytes free, the image has {size}.",
            store=planned.store,
            hint="Choose another store, or make room.",
        )
        return replace(planned, error=full)


def _not_done(store: str, reason: str, error: GlissadeError | None = None) -> Planned:
    return Planned(store=store, method=NO_METHOD, reason=reason, bytes_through=0, error=error)


def _job_plan(
    image_id: str | None,
    size_bytes: int | None,
    asked: _Asked,
    plan: TransferPlan | None,
    verify: VerifyMode,
    source: Afterwards,
) -> JobPlan:
    told = plan.info.size_bytes if plan is not None else None
    return JobPlan(
        image_id=image_id,
        size_bytes=told if told is not None else size_bytes,
        must_read=plan is not None and plan.must_read,
        bytes_read=0 if plan is None else plan.bytes_read,
        bytes_through=0 if plan is None else plan.bytes_through,
        verify=verify,
        destinations=asked.in_order(),
        source=source,
    )


async def _image(image_id: str, services: Services) -> Image:
    image = await services.database.read(lambda tx: services.images.get(tx, image_id))
    services.images.check_readable(image)
    return image
