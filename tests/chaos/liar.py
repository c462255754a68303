"""An S3 store that answers through a proxy which, when told to, flips a bit of whatever is read."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.chaos.shelves import S3Shelf
from tests.fakes.fault_proxy import Fault, FaultProxy, Kind

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.services.ceph import Ceph
    from tests.services.s3_bucket import Bucket


@contextmanager
def proxy_in_front_of(url: str) -> Iterator[FaultProxy]:
    """A proxy in a thread of its own."""
    where = urlsplit(url)
    proxy = FaultProxy(where.hostname or "", where.port or 80)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(60)
        yield proxy
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class LyingS3Shelf(S3Shelf):
    """The daemon sees the bucket through the proxy; everybody else does not."""

    def __init__(self, name: str, ceph: Ceph, bucket: Bucket, place: Path, proxy: FaultProxy) -> None:
        super().__init__(name, ceph, bucket, place)
        self._proxy = proxy
        self.section = {**self.section, "endpoint": proxy.url}

    @property
    def damages(self) -> Mapping[str, Callable[[str, random.Random], None]]:
        return {"proxy bit": self._flip}

    def _flip(self, image_id: str, chance: random.Random) -> None:
        """In every answer with the image's bytes, from now until the next time."""
        target = rf"/{image_id}(\?|$)"
        at_byte = chance.randrange(4096)
        flip = Fault(kind=Kind.FLIPPED_DOWNLOAD_BIT, method="GET", target=target, times=None, at_byte=at_byte)
        self._proxy.faults[:] = [flip]  # One act: the proxy's thread sees either.
