"""A real glance_store, for the bench and the interoperability tests. Runs with the rivals' own interpreter:

python glance_store_peer.py add DIRECTORY IMAGE FILE    add the file as Glance would, tell wall, CPU and what
it returned python glance_store_peer.py get DIRECTORY URL              read the image back, tell size and
digests
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from typing import Any

from bench.measure import Window

STORE = "peer"


def main(arguments: list[str]) -> None:
    """Do one thing and tell it."""
    verb, directory, *rest = arguments
    glance_store = _open(directory)
    if verb == "add":
        image, path = rest
        with open(path, "rb") as data, Window() as window:
            store = glance_store.get_store_from_store_identifier(STORE)
            url, size, checksum, multihash, metadata = glance_store.store_add_to_backend_with_multihash(
                image, data, os.path.getsize(path), "sha512", store
            )
        window.tell(
            url=url, size_bytes=size, digests={"md5": checksum, "sha512": multihash}, metadata=metadata
        )
    elif verb == "get":
        (url,) = rest
        digests = {"md5": hashlib.md5(usedforsecurity=False), "sha512": hashlib.sha512()}
        total = 0
        with Window() as window:
            chunks, size = glance_store.get(url, STORE)
            for chunk in chunks:
                total += len(chunk)
                for digest in digests.values():
                    digest.update(chunk)
        told = {name: digest.hexdigest() for name, digest in digests.items()}
        window.tell(size_bytes=total, announced_bytes=int(size), digests=told)
    else:
        raise SystemExit(f"no verb {verb!r}: add, get")


def _open(directory: str) -> Any:
    """glance_store with one enabled store of type file, configured as Glance does it: through the global
    options.

    Imported by name, so that type checking needs nothing from the rivals' environment.
    """
    cfg = importlib.import_module("oslo_config.cfg")
    glance_store = importlib.import_module("glance_store.multi_backend")
    conf = cfg.CONF
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    conf([], default_config_files=[], default_config_dirs=[])
    conf.set_override("enabled_backends", {STORE: "file"})
    glance_store.register_store_opts(conf)
    conf.set_override("default_backend", STORE, group="glance_store")
    conf.set_override("filesystem_store_datadir", directory, group=STORE)
    glance_store.create_multi_stores(conf)
    return glance_store


if __name__ == "__main__":
    main(sys.argv[1:])
