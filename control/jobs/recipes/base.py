"""What a recipe is to the worker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from control.jobs.errors import InternalError, QuarantinedError
from control.jobs.requests import stored_request
from dataplane.digests import KNOWN_ALGORITHMS, check_algorithms
from dataplane.errors import DigestMismatchError, SizeMismatchError
from dataplane.terms import Expected, VerifyMode

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.images import Image, Location
    from control.jobs.model import Job
    from control.jobs.run import Run
    from control.jobs.services import Services
    from dataplane.errors import GlissadeError

R = TypeVar("R")

_STRONG: Final = frozenset({"sha512", "sha384", "sha256"})
"""Digests that say alone who an image is."""


class Recipe(Protocol):
    """How one kind of job is done. Stateless: everything about a job is in its row and its run."""

    async def waits_for(self, tx: AsyncConnection, job: Job, services: Services) -> str | None:
        """The store that must become usable before an attempt makes sense; None to begin now."""
        ...

    async def run(self, run: Run) -> None:
        """Do the job, or what is left of it after an earlier attempt; returns when it has succeeded.

        Everything else is an exception: `NothingToDoError`, `QuarantinedError`, `JobCancelledError`,
        `LeaseLostError`, or the error that made it fail. What the attempt left in a store is cleared by the
        worker.
        """
        ...

    def written_stores(self, job: Job) -> tuple[str, ...]:
        """The stores in which an attempt may leave something under its name."""
        ...

    async def given_up(self, tx: AsyncConnection, job: Job, services: Services) -> None:
        """The job ends without having published: undo what its acceptance did to the catalogue, in that
        same transaction.
        """
        ...


def request_of(job: Job, model: type[R]) -> R:
    """The job's request as its kind's model."""
    request = stored_request(dict(job.request))
    if not isinstance(request, model):
        raise InternalError(f"The job {job.id} is a {job.kind} with the request of a {request.kind}.")
    return request


def expected_of(image: Image) -> Expected:
    """What the catalogue says the image's bytes are, as far as it can be checked here."""
    known = {name: value for name, value in image.digests.items() if name in KNOWN_ALGORITHMS}
    return Expected(size_bytes=image.size_bytes, digests=known)


def wanted_digests(image: Image, default: str) -> tuple[str, ...]:
    """The digests that the catalogue keeps for the image."""
    return ("md5", image.os_hash_algo or default)


def proof_of(image: Image) -> Expected:
    """What a copy of the image is held against: its strong digest, where one is recorded. The md5 beside it
    would prove nothing more; alone it is what there is. Raises `UnknownDigestError` when a digest is recorded
    that cannot be computed here: a copy that was held against less could be damaged, and its source deleted.
    """
    check_algorithms(image.digests)
    recorded = expected_of(image)
    strong = {name: value for name, value in recorded.digests.items() if name in _STRONG}
    return replace(recorded, digests=strong or recorded.digests)


def missing_digests(image: Image, default: str) -> tuple[str, ...]:
    """The digests that the catalogue keeps and lacks: whoever reads the image computes them on the way."""
    return tuple(name for name in wanted_digests(image, default) if name not in image.digests)


def must_read(image: Image, verify: VerifyMode) -> bool:
    """Whether the image's bytes have to pass through us, because nobody knows their digest yet."""
    return image.os_hash_value is None and verify is not VerifyMode.NONE


def is_damaged_source(error: GlissadeError, store: str) -> bool:
    """Whether the error says that the source's bytes are not the image that the catalogue describes."""
    return isinstance(error, DigestMismatchError | SizeMismatchError) and error.store == store


async def quarantined(run: Run, image: Image, place: Location, error: GlissadeError) -> QuarantinedError:
    """Put the place into quarantine, and say so: its bytes are not the image."""
    images = run.services.images
    await run.record(
        "quarantine",
        work=lambda tx: images.quarantine(
            tx, image.id, place.row_id, job_id=run.job.id, reason=error.message
        ),
    )
    return QuarantinedError(
        f"The copy of image {image.id} in {place.store} is damaged: {error.message}",
        hint="It was left as it is and is in quarantine. Restore it and run `glissade image verify`, or copy"
        " the image from another store.",
    )


async def image_or_none(tx: AsyncConnection, job: Job, services: Services) -> Image | None:
    """The job's image, or None when it is gone (the attempt will say so)."""
    return await services.images.find(tx, job.image_id)
