"""Looks into an image while it comes in: whether it is what it is declared to be, and whether it is safe
to open.

The recognising is oslo.utils'. Its parsers see the first bytes, each as long as it wants more; what they
keep is bounded, and they work in a thread, since the bytes are a stranger's. When nobody wants more,
nothing is done any longer. Decided is as early as possible: what is wrong is refused before the rest is read.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from oslo_utils.imageutils import format_inspector

from control.jobs.errors import FormatMismatchError, LeaseLostError, UnsafeImageError
from drivers.blocking import run_blocking

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from control.catalog.images import Image
    from control.jobs.run import Run
    from dataplane.checkpoint import Checkpointing, TransferCheckpoint

log = logging.getLogger(__name__)

# It logs lines of the image, of any length, with their control characters.
logging.getLogger(format_inspector.__name__).setLevel(logging.CRITICAL + 1)

_SLICE_BYTES: Final = 64 * 1024
"""The parsers look for what a region points to when the next piece comes: with large pieces it has passed."""
_LARGEST: Final = 2**63 - 1
"""What the catalogue's column holds."""
_AS_RAW: Final = frozenset({"gpt", "iso", "luks"})
"""What the bytes of a disk may begin with. Whoever opens them as raw finds nothing else in them."""
_CHECKPOINT: Final = "inspected"


class Inspection:
    """A tap for one image. `enforce`: refuse what is wrong; without, only its size is found out.

    Belongs to one transfer. Its fields are changed by the thread that has the bytes, while the tap waits.
    """

    def __init__(self, image_id: str, disk_format: str, *, enforce: bool) -> None:
        self._image_id = image_id
        self._declared = disk_format
        self._enforce = enforce
        self.begin()

    def begin(self) -> None:
        """The first byte comes next: whatever was decided before was of other bytes."""
        self._parsers: list[format_inspector.FileInspector] = [
            parser() for name, parser in format_inspector.ALL_FORMATS.items() if name != "raw"
        ]
        self._hungry = list(self._parsers)
        self._failed: set[format_inspector.FileInspector] = set()
        self._virtual_size: int | None = None
        self._is_as_large = False
        self._bytes_seen = 0
        self.is_decided = False
        self.bytes_needed = 0
        """So many bytes from the beginning the decision rests on, once `is_decided`."""

    @property
    def seen_bytes(self) -> int | None:
        """None: it is not decided."""
        return self.bytes_needed if self.is_decided else None

    def virtual_size_bytes(self, size_bytes: int) -> int | None:
        """How large the disk is for who uses it, where that can be known; for an image of that size. After
        `end`.
        """
        return size_bytes if self._is_as_large else self._virtual_size

    def facts(self) -> dict[str, Any]:
        """What was decided, for `trust` in another attempt. Once `is_decided`."""
        return {
            "bytes": self.bytes_needed,
            "virtual_size": self._virtual_size,
            "as_large": self._is_as_large,
            "disk_format": self._declared,
            "enforced": self._enforce,
        }

    def trust(self, facts: Mapping[str, Any]) -> None:
        """It was looked at before, and was good: nothing is done before `begin`. What was looked at as
        something else, or not as strictly, is not trusted.
        """
        if (facts.get("disk_format"), facts.get("enforced")) != (self._declared, self._enforce):
            return
        self.bytes_needed = facts["bytes"]
        self._virtual_size = facts["virtual_size"]
        self._is_as_large = facts["as_large"]
        self.is_decided = True

    async def see(self, data: memoryview) -> None:
        """Raises `FormatMismatchError`, `UnsafeImageError`."""
        if not self.is_decided:
            await run_blocking(self._look, data)
            self._bytes_seen += len(data)

    async def end(self) -> None:
        """Raises as `see`."""
        if not self.is_decided:
            await run_blocking(self._look_back)

    def _look(self, data: memoryview) -> None:
        for at in range(0, len(data), _SLICE_BYTES):
            self._feed(data[at : at + _SLICE_BYTES])
            if not self._hungry or self._declared_is_refuted():
                self._decide(self._bytes_seen + min(at + _SLICE_BYTES, len(data)))
                return

    def _look_back(self) -> None:
        for parser in self._parsers:
            parser.finish()
        self._decide(self._bytes_seen)

    def _feed(self, piece: memoryview) -> None:
        for parser in list(self._hungry):
            had_enough = parser.complete
            try:
                parser.eat_chunk(piece)  # type: ignore[arg-type] # it only slices and adds: no copy is needed
            except Exception as error:  # noqa: BLE001 - whatever a parser trips over is not of its format
                log.debug("Image %s: is no %s: %r", self._image_id, parser, error)
                self._failed.add(parser)
                self._hungry.remove(parser)
            else:
                if had_enough and parser.complete:  # Not only until it finds out where to look next.
                    self._hungry.remove(parser)

    def _declared_is_refuted(self) -> bool:
        """Whether the parser of the declared format is through, and it is not that."""
        if not self._enforce:
            return False
        own = [parser for parser in self._parsers if self._declared == parser.NAME]
        return any(parser not in self._hungry and not _matches(parser) for parser in own)

    def _decide(self, needed: int) -> None:
        self.bytes_needed = needed
        found = {parser.NAME: parser for parser in self._parsers if _matches(parser)}
        try:
            self._check(found)
            self._virtual_size = self._size_of(found)
        except FormatMismatchError as error:
            if self._enforce:
                raise
            log.info("Image %s: %s", self._image_id, error.message)
        self.is_decided = True
        self._hungry = []
        self._parsers = []

    def _check(self, found: Mapping[str, format_inspector.FileInspector]) -> None:
        """Raises `FormatMismatchError`, `UnsafeImageError`."""
        declared = self._declared
        self._is_as_large = declared not in format_inspector.ALL_FORMATS or declared == "raw"
        if self._is_as_large:
            # A kernel begins like a disk with partitions.
            strange = found.keys() - (_AS_RAW if declared == "raw" else {"gpt"})
            if strange:
                raise self._mismatch(strange)
            return
        if declared not in found:
            raise self._mismatch(found)
        others = found.keys() - {declared} - ({"gpt"} if declared == "iso" else set())
        if others:
            raise UnsafeImageError(
                f"The image {self._image_id} is {_listed(found)} at once.",
                hint="An image that is two things is read as the wrong one by somebody; make it anew.",
            )
        parser = found[declared]
        if parser in self._failed:
            raise self._unsafe("it is malformed")
        try:
            parser.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            raise self._unsafe("; ".join(_reasons(error))) from error
        except Exception as error:
            raise self._unsafe("it is incomplete or malformed") from error

    def _size_of(self, found: Mapping[str, format_inspector.FileInspector]) -> int | None:
        """Raises `UnsafeImageError`."""
        parser = found.get(self._declared)
        if parser is None or self._is_as_large:
            return None
        try:
            size = parser.virtual_size
        except Exception as error:
            raise self._unsafe("its size cannot be read") from error
        if not 0 <= size <= _LARGEST:
            raise self._unsafe("it says that its disk is larger than anything")
        return size or None

    def _mismatch(self, found: Collection[str]) -> FormatMismatchError:
        what = _listed(found) if found else "not of any format that is known here"
        return FormatMismatchError(
            f"The image {self._image_id} is declared as {self._declared}, but its content is {what}.",
            hint="Declare the disk_format that it has, or convert it.",
        )

    def _unsafe(self, why: str) -> FormatMismatchError:
        return UnsafeImageError(
            f"The image {self._image_id} is not safe to use as {self._declared}: {why}.",
            hint="Whoever opens it would be led to other files, or astray. Make it anew as one whole image.",
        )


def inspection_of(run: Run, image: Image) -> Inspection | None:
    """What the bytes of the image have to pass in this attempt, or None. It knows what an earlier attempt
    decided; if there is no such decision, the transfer does not go on with what that one left.
    """
    if image.container_format != "bare" or image.disk_format is None:
        return None
    inspection = Inspection(image.id, image.disk_format, enforce=run.services.require_format_match)
    if run.resume is not None:
        known = run.job.checkpoint.get(_CHECKPOINT)
        if known is not None:
            inspection.trust(known)
    return inspection


def checkpoints_after(run: Run, inspection: Inspection | None) -> Checkpointing:
    """The run's checkpoints, none of which is before the byte with which the inspection decided: what was
    looked at and what lies in the stores are then the same bytes, whatever the source sends the next time.
    What the job has noted of the decision is about the bytes of the newest checkpoint; nothing, if they were
    not looked into.
    """
    checkpoints = run.checkpoints()

    async def save(checkpoint: TransferCheckpoint) -> None:
        marks = [place.mark.size_bytes for place in checkpoint.destinations.values()]
        seen = 0 if inspection is None else inspection.seen_bytes
        if seen is None or min(marks, default=0) < seen:
            return
        facts = None if inspection is None else inspection.facts()
        if run.job.checkpoint.get(_CHECKPOINT) != facts:
            try:
                await run.record(run.job.phase, checkpoint={_CHECKPOINT: facts})
            except LeaseLostError:
                return  # The attempt is about to be stopped.
        await checkpoints.save(checkpoint)

    def keep_if(error: BaseException) -> bool:
        return (inspection is None or inspection.is_decided) and checkpoints.keep_if(error)

    return replace(checkpoints, save=save, keep_if=keep_if)


def _matches(parser: format_inspector.FileInspector) -> bool:
    """Also one that failed: what begins like a format counts as it, however broken it is."""
    try:
        return parser.format_match
    except Exception:  # noqa: BLE001 - a parser may fail here in any way; then it has not recognised anything
        return False


def _listed(names: Collection[str]) -> str:
    return " and ".join(sorted(names))


def _reasons(error: format_inspector.SafetyCheckFailed) -> list[str]:
    return [f"{name}: {why}".rstrip(".") for name, why in sorted(error.failures.items())]
