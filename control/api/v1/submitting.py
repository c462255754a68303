"""What every request meets that names images and stores for a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from control.api.openapi.describing import Parameter
from control.catalog.errors import (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
    LocationNotFoundError,
)
from control.jobs.errors import (
    DeleteNotAllowedError,
    DrainingError,
    IdempotencyKeyReusedError,
    QueueFullError,
    SourceNotAllowedError,
    SourceStoreNeededError,
    StoreNotWritableError,
    UnknownStoreError,
)
from dataplane.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dataplane.errors import GlissadeError

NAMING_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (
    ImageExistsError,
    ImageNotFoundError,
    ImageStateError,
    LastLocationError,
    LocationNotFoundError,
    DeleteNotAllowedError,
    SourceNotAllowedError,
    SourceStoreNeededError,
    StoreNotWritableError,
    UnknownStoreError,
    UnavailableError,
)
SUBMITTING_MAY_MEET: Final[Sequence[type[GlissadeError]]] = (
    *NAMING_MAY_MEET,
    DrainingError,
    IdempotencyKeyReusedError,
    QueueFullError,
)
IDEMPOTENCY_KEY: Final = Parameter(
    name="Idempotency-Key",
    where="header",
    description="The same key and body are the same job.",
    schema={"type": "string", "pattern": "^[!-~]{1,255}$"},
)
