"""Writes most of an image into a store, says so, and waits to be killed.

What to do comes as one line of JSON: the store's type and configuration, key, attempt and size_bytes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from typing import Any

from dataplane.store import MIB, WriteOptions
from drivers.options import StoreOptions
from drivers.registry import STORE_TYPES
from drivers.secret import Secret


async def main(told: dict[str, Any]) -> None:
    """Write all but the last MiB."""
    kind = STORE_TYPES[told["type"]]
    secrets = {field.name for field in dataclasses.fields(kind.config_class()) if "Secret" in str(field.type)}
    config = {
        name: Secret(value) if name in secrets and value is not None else value
        for name, value in told["config"].items()
    }
    driver = kind.driver_class()("unfinished", kind.config_class()(**config), StoreOptions())
    options = WriteOptions(size_bytes=told["size_bytes"], attempt=told["attempt"])
    async with driver.open_write(told["key"], options) as session:
        for _ in range(told["size_bytes"] // MIB - 1):
            await session.write(memoryview(bytearray(b"x" * MIB)))
        sys.stdout.write("written\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
