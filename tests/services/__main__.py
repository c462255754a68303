"""Run servers by hand until interrupted: python -m tests.services [--json FILE] NAME..., with the names of
the fixtures. FILE is then what `python -m bench --services FILE` reads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.services.park import UNAVAILABLE, Park

if TYPE_CHECKING:
    from tests.services.ceph import Ceph
    from tests.services.postgres import Postgres
    from tests.services.swift import Swift


def main() -> None:
    """Start what is named, tell where it answers, and wait for an interrupt."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="describe ceph, swift_server and postgres there"
    )
    parser.add_argument("names", nargs="+", choices=list(UNAVAILABLE), metavar="NAME")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Park(arguments.names) as park, contextlib.ExitStack() as stack:
        ask = {
            "ceph": park.ceph,
            "swift_server": park.swift,
            "keystone": park.keystone,
            "postgres": park.postgres,
            "swift_keystone": park.swift_keystone,
        }
        with contextlib.suppress(KeyboardInterrupt):
            running = {name: ask[name]() for name in arguments.names}
            for name, server in running.items():
                print(f"{name}: {server}", flush=True)
            if arguments.json is not None:
                stack.callback(arguments.json.unlink, missing_ok=True)
                _write(arguments.json, running)
            signal.pause()


def _write(file: Path, running: dict[str, Any]) -> None:
    """For the bench; it holds credentials, so nobody else reads it."""
    described: dict[str, Any] = {}
    if "ceph" in running:
        described["ceph"] = describe_ceph(running["ceph"])
    if "swift_server" in running:
        described["swift_server"] = _describe_swift(running["swift_server"])
    if "postgres" in running:
        described["postgres"] = _describe_postgres(running["postgres"])
    part = file.with_name(f"{file.name}.part")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    part.touch(mode=0o600)
    part.write_text(json.dumps(described, indent=1))
    os.replace(part, file)


def describe_ceph(ceph: Ceph) -> dict[str, Any]:
    """The cluster, in a bucket and a container for the bench."""
    first, second = ceph.pools
    return {
        "s3": {**asdict(ceph.s3), "bucket": "bench"},
        "swift": {**asdict(ceph.swift), "container": "bench"},
        "rbd": {"conf_file": str(ceph.conf), "user": ceph.user, "pool": first, "second_pool": second},
        "server_pids": {"radosgw": ceph.radosgw_process_ids, "osd": ceph.osd_process_ids},
    }


def _describe_swift(swift: Swift) -> dict[str, Any]:
    return {
        "s3": asdict(swift.s3),
        "swift": asdict(swift.tempauth),
        "server_pids": {"swift": swift.cpu_pids},
    }


def _describe_postgres(server: Postgres) -> dict[str, Any]:
    """A new database for the bench."""
    return {"postgres": {"url": server.url(server.new_database()), "password": server.password}}


if __name__ == "__main__":
    main()
