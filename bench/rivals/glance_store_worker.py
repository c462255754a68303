"""One process of Glance as the bench needs it: many images through a real glance_store, one after the other.

Runs with the rivals' own interpreter: `python glance_store_worker.py '{"verb": "add", "driver": "file",
"options": {...}, "images": {image: file}}'`; verb `get` reads URLs instead and digests what it reads, as
Glance's hash calculation does; verb `save` writes it into a `directory` undigested. `@FILE` instead of all
that: it is in the file, where nobody else reads the credentials. Several wait for each other and then begin.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench.measure import Window, gate

STORE = "rival"


def main(text: str) -> None:
    """Do it and tell it."""
    arguments = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    images: dict[str, str] = arguments["images"]
    glance_store = open_store(arguments["driver"], arguments["options"])
    urls = {}
    digests = {}
    gate()
    with Window(arguments.get("server_pids", ())) as window:
        for image, place in images.items():
            if arguments["verb"] == "add":
                urls[image], digests[image] = _add(glance_store, image, place)
            elif arguments["verb"] == "get":
                digests[image] = _get(glance_store, place)
            else:
                _save(glance_store, place, os.path.join(arguments["directory"], image))
    window.tell(urls=urls, **({"digests": digests} if digests else {}))


def _add(glance_store: Any, image: str, path: str) -> tuple[str, dict[str, str]]:
    store = glance_store.get_store_from_store_identifier(STORE)
    with open(path, "rb") as data:
        url, _, checksum, multihash, _ = glance_store.store_add_to_backend_with_multihash(
            image, data, os.path.getsize(path), "sha512", store
        )
    return url, {"md5": checksum, "sha512": multihash}


def _get(glance_store: Any, url: str) -> dict[str, str]:
    digests = {"md5": hashlib.md5(usedforsecurity=False), "sha512": hashlib.sha512()}
    chunks, _ = glance_store.get(url, STORE)
    for chunk in chunks:
        for digest in digests.values():
            digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _save(glance_store: Any, url: str, path: str) -> None:
    chunks, _ = glance_store.get(url, STORE)
    with open(path, "wb") as file:
        file.writelines(chunks)


def open_store(driver: str, options: dict[str, Any]) -> Any:
    """glance_store with one enabled store, configured as Glance does it: through the global options.

    Imported by name, so that type checking needs nothing from the rivals' environment.
    """
    cfg = importlib.import_module("oslo_config.cfg")
    glance_store = importlib.import_module("glance_store.multi_backend")
    conf = cfg.CONF
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    conf([], default_config_files=[], default_config_dirs=[])
    conf.set_override("enabled_backends", {STORE: driver})
    glance_store.register_store_opts(conf)
    conf.set_override("default_backend", STORE, group="glance_store")
    for name, value in options.items():
        conf.set_override(name, value, group=STORE)
    glance_store.create_multi_stores(conf)
    return glance_store


if __name__ == "__main__":
    main(sys.argv[1])
