"""A real glance_store for the interoperability tests. Runs with the rivals' own interpreter:

python glance_store_peer.py DRIVER OPTIONS

OPTIONS are those of the driver, as JSON. Each line of input is a list: `add IMAGE FILE`,
`add_unsized IMAGE FILE`, `get URL`, `delete URL` or `get_and_delete URL`. The line that answers tells what
glance_store returned, or the name of its error.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

worker = importlib.import_module("glance_store_worker")  # Beside this script; the package needs what is ours.


def main(driver: str, options: str) -> None:
    """Do what is asked, until there is nothing more."""
    glance_store = worker.open_store(driver, json.loads(options))
    errors = importlib.import_module("glance_store.exceptions").GlanceStoreException
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        try:
            told = _VERBS[verb](glance_store, *arguments)
        except errors as error:
            told = {"error": type(error).__name__}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def _add(glance_store: Any, image: str, path: str) -> dict[str, Any]:
    return _add_as(glance_store, image, path, os.path.getsize(path))


def _add_unsized(glance_store: Any, image: str, path: str) -> dict[str, Any]:
    """As an upload whose size its client did not tell."""
    return _add_as(glance_store, image, path, 0)


def _add_as(glance_store: Any, image: str, path: str, size_bytes: int) -> dict[str, Any]:
    store = glance_store.get_store_from_store_identifier(worker.STORE)
    with open(path, "rb") as data:
        url, size, checksum, multihash, metadata = glance_store.store_add_to_backend_with_multihash(
            image, data, size_bytes, "sha512", store
        )
    digests = {"md5": checksum, "sha512": multihash}
    return {"url": url, "size_bytes": size, "digests": digests, "metadata": metadata}


def _get(glance_store: Any, url: str) -> dict[str, Any]:
    digests = {"md5": hashlib.md5(usedforsecurity=False), "sha512": hashlib.sha512()}
    total = 0
    chunks, size = glance_store.get(url, worker.STORE)
    for chunk in chunks:
        total += len(chunk)
        for digest in digests.values():
            digest.update(chunk)
    told = {name: digest.hexdigest() for name, digest in digests.items()}
    return {"size_bytes": total, "announced_bytes": int(size), "digests": told}


def _delete(glance_store: Any, url: str) -> dict[str, Any]:
    glance_store.delete(url, worker.STORE)
    return {}


def _get_and_delete(glance_store: Any, url: str) -> dict[str, Any]:
    return {**_get(glance_store, url), **_delete(glance_store, url)}


_VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "add": _add,
    "add_unsized": _add_unsized,
    "get": _get,
    "delete": _delete,
    "get_and_delete": _get_and_delete,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
