"""What is told of a failure to those who are not to know how stores, catalogue and Keystone are reached: the
texts of errors are for operators, and name paths, pools and addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from control.api.errors import AuthUnavailableError, InvalidRequestError
from control.catalog.errors import CatalogUnavailableError
from dataplane.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.api.auth.caller import Caller
    from dataplane.errors import GlissadeError

SENTENCES: Final[Mapping[str, str]] = {
    "store_error": "The store failed.",
    "not_found": "The bytes are not there.",
    "already_exists": "The store has something under this name already.",
    "invalid_key": "The name cannot be that of an image.",
    "not_a_regular_file": "What is there is no file.",
    "access_denied": "The store does not let us do this.",
    "read_only_store": "The store takes no images.",
    "store_full": "The store has no room left.",
    "object_in_use": "Others depend on the image.",
    "object_busy": "Somebody has the image open.",
    "store_unavailable": "The store cannot be reached now.",
    "leftover_busy": "What an attempt left cannot be removed yet.",
    "stalled": "Nothing moved for too long.",
    "truncated": "The bytes ended too early.",
    "source_refused": "The source refused, or gave something that is not the image.",
    "address_refused": "The address must not be read from.",
    "store_io_error": "The store's device failed.",
    "offload_declined": "The store cannot do this by itself.",
    "integrity_error": "The bytes are not what they should be.",
    "size_mismatch": "There are more or fewer bytes than there should be.",
    "digest_mismatch": "The bytes have another digest than they should have.",
    "object_changed": "The bytes have become others.",
    "checkpoint_lost": "What was done so far is lost.",
    "quarantined": "The copy that was to be read is damaged, and in quarantine.",
    "catalog_unavailable": "The catalogue cannot be asked now.",
    "commit_unknown": "The catalogue did not say whether it was done.",
    "authentication_unavailable": "Tokens cannot be checked now.",
}
"""By the code of an error that can say where things are."""


def knows_places(caller: Caller | None) -> bool:
    """Operators, administrators and services are told everything."""
    return caller is not None and (caller.is_operator or caller.is_admin or "service" in caller.roles)


def plain_words(error: GlissadeError) -> str | None:
    """The error in words that say nothing of places; None when its own are such."""
    if isinstance(error, InvalidRequestError) and isinstance(error.__cause__, StoreError):
        return plain_words(error.__cause__)
    if isinstance(error, StoreError):
        return _said(error.code, error.store)
    if isinstance(error, AuthUnavailableError | CatalogUnavailableError):
        return _said(error.code, None)
    return None


def plain_words_of_job(error: Mapping[str, Any]) -> str | None:
    """The same for the error of a job's row."""
    code, store = str(error["code"]), error.get("store")
    if store is None and (code == "not_found" or code not in SENTENCES):
        return None
    return _said(code, store)


def _said(code: str, store: str | None) -> str:
    """The code and the store are in it, so that operators can be asked about it."""
    where = code if store is None else f"{code}, store {store}"
    return f"{SENTENCES.get(code, SENTENCES['store_error'])} ({where})"
