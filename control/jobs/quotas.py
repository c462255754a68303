"""What a project may use, held against what it uses when something more is begun for it, and again, with the
size that it turned out to have, in the transaction that publishes what came in.

What is under way counts with the size that is known of it. Of what is checked at the same moment for the same
project one comes after the other, so a limit holds on all nodes together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control.catalog.errors import ImageQuotaError
from control.catalog.usage import hold_usage, usage_of
from dataplane.store import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

    from control.catalog.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """What is to be begun, or published: so many images more, so many to which bytes come, so many bytes in
    stores and in the staging area (0 when nobody knows how many, None when none).
    """

    count: int = 0
    uploading: int = 0
    size_bytes: int | None = None
    stage_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """For each project; None: no limit."""

    image_size_total_bytes: int | None = None
    image_stage_total_bytes: int | None = None
    image_count_total: int | None = None
    image_count_uploading: int | None = None

    async def check(self, tx: AsyncConnection, owner: str | None, more: More) -> None:
        """Raises `ImageQuotaError` when the project would have more than it may of something that there is to
        be more of. Who has too many bytes already gets no more, however few. To be called in the transaction
        that begins or publishes it, before any image is locked.
        """
        asked = {
            "image_count_total": more.count or None,
            "image_count_uploading": more.uploading or None,
            "image_stage_total": more.stage_bytes,
            "image_size_total": more.size_bytes,
        }
        limits = self._limits()
        limited = [name for name in asked if asked[name] is not None and limits[name] is not None]
        if owner is None or not limited:
            return
        await hold_usage(tx, owner)
        used = _by_name(await usage_of(tx, owner))
        for name in limited:
            self._hold(name, used[name], asked[name] or 0)

    def shown(self, usage: Usage) -> dict[str, dict[str, int]]:
        """As Glance shows them: sizes in MiB, -1 for no limit."""
        limits = self._limits()
        return {
            name: {"usage": _shown(name, used), "limit": _shown(name, limits[name])}
            for name, used in _by_name(usage).items()
        }

    def _limits(self) -> Mapping[str, int | None]:
        return {
            "image_size_total": self.image_size_total_bytes,
            "image_stage_total": self.image_stage_total_bytes,
            "image_count_total": self.image_count_total,
            "image_count_uploading": self.image_count_uploading,
        }

    def _hold(self, name: str, used: int, more: int) -> None:
        limit = self._limits()[name]
        if limit is None or used + more <= limit:
            return
        unit = " bytes" if name in _SIZES else ""
        raise ImageQuotaError(
            f"The project is over its limit {name}: it may have {limit}{unit}, has {used}, and asks for"
            f" {more} more.",
            hint="Delete images, or ask those who run this service for more (images.quotas).",
        )


_SIZES = ("image_size_total", "image_stage_total")


def _by_name(usage: Usage) -> dict[str, int]:
    return {
        "image_size_total": usage.size_bytes,
        "image_stage_total": usage.stage_bytes,
        "image_count_total": usage.count,
        "image_count_uploading": usage.uploading,
    }


def _shown(name: str, number: int | None) -> int:
    if number is None:
        return -1
    return number // MIB if name in _SIZES else number
