"""What a user asks us to read from elsewhere is looked at before it is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.api.errors import InvalidRequestError
from dataplane.errors import InvalidKeyError, SourceRefusedError, UnavailableError

if TYPE_CHECKING:
    from dataplane.store import Source


async def require_readable(source: Source, key: str) -> None:
    """Raises `InvalidRequestError` when the source would refuse the key whatever lies there. The job checks
    it again, at every step: here it is only said early.
    """
    vet = source.capabilities.vet
    if vet is None:
        return
    try:
        await vet(key)
    except (SourceRefusedError, InvalidKeyError) as error:
        raise InvalidRequestError(f"{error.message} {error.hint}".strip()) from error
    except UnavailableError:
        return  # Its name cannot be looked up now; the job tries again.
