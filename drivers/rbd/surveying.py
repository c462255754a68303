"""What lies in a pool: images, what attempts left, and what is not ours. Ceph's trash is not looked at."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Final

from dataplane.errors import InvalidKeyError
from dataplane.store import FoundAttempt, FoundForeign, FoundObject
from drivers.rbd.clibrary import CephError
from drivers.rbd.image import Image, image_names
from drivers.rbd.names import ATTEMPT_NOTE, SNAPSHOT, new_image_name, parse_attempt_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from dataplane.store import Found
    from drivers.blocking import BlockingThreads
    from drivers.rbd.cluster import Pool
    from drivers.rbd.connection import Connection

_PAGE: Final = 50
"""Of each image its size, its snapshots and its notes have to be asked for."""


class RbdSurvey:
    """`Survey` of one pool. Ceph tells all names at once; they are remembered, and nothing more."""

    def __init__(self, store: str, connection: Connection, threads: BlockingThreads) -> None:
        self._store = store
        self._connection = connection
        self._threads = threads

    async def __call__(self) -> AsyncGenerator[Sequence[Found], None]:
        names = iter(sorted(await self._threads.run(self._names)))
        while page := list(islice(names, _PAGE)):
            yield await self._threads.run(self._describe_all, page)

    def _names(self) -> set[str]:
        with self._connection.used() as pool:
            return image_names(pool)

    def _describe_all(self, names: Iterable[str]) -> list[Found]:
        with self._connection.used() as pool:
            return [one for name in names for one in self._describe(pool, name)]

    def _describe(self, pool: Pool, name: str) -> list[Found]:
        attempt = parse_attempt_name(name)
        try:
            image = Image(pool, name)
        except CephError as error:
            if error.errno != errno.ENOENT:
                raise
            if attempt is None:
                return [FoundForeign(name=name)]  # Being removed, or what a removal left of it.
            key, token = attempt
            left = "what is left of a removal"
            return [FoundAttempt(key=key, attempt=token, what=left, size_bytes=None, modified_at=None)]
        try:
            size, at = image.size_bytes, datetime.fromtimestamp(float(image.modified), UTC)
            if attempt is not None:
                key, token = attempt
                return [
                    FoundAttempt(
                        key=key, attempt=token, what="unfinished data", size_bytes=size, modified_at=at
                    )
                ]
            if SNAPSHOT not in image.snapshots() or not self._is_key(name):
                return [FoundForeign(name=name)]
            found: list[Found] = [FoundObject(key=name, size_bytes=size, modified_at=at)]
            made_by = parse_attempt_name(image.note(ATTEMPT_NOTE) or "")
            if made_by is not None:
                found.append(
                    FoundAttempt(key=name, attempt=made_by[1], what="a mark", size_bytes=None, modified_at=at)
                )
            return found
        finally:
            image.close()

    def _is_key(self, name: str) -> bool:
        try:
            new_image_name(self._store, name)
        except InvalidKeyError:
            return False
        return True
