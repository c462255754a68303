"""Writing an image: by one request when it is small, else in parts, several at once."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dataplane.errors import SizeMismatchError, StoreError, StoreIOError
from dataplane.store import MIB, WriteMark
from drivers.parts import PartUploads, growing
from drivers.patience import patiently
from drivers.s3.attempt import Proof, list_parts
from drivers.s3.config import MOST_PARTS
from drivers.s3.errors import UploadGoneError
from drivers.wire import Pieces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from dataplane.store import ObjectInfo, WriteOptions
    from drivers.blocking import BlockingThreads
    from drivers.parts import Part, SessionBuffers
    from drivers.s3.attempt import S3Attempt
    from drivers.s3.checks import PartMd5
    from drivers.s3.config import S3Config
    from drivers.s3.service import S3Object, S3Service

LARGEST_GROWN_BYTES: Final = 64 * MIB
"""Parts of an image of unknown size grow up to this, while there are buffers for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _SentPart:
    """A part that the service has acknowledged: what it is called, and how to name it on completion."""

    etag: str
    size_bytes: int
    checksum: str | None = None


class S3WriteSession:
    """One image being written; see `dataplane.store.WriteSession`. Fields change on the loop only."""

    def __init__(
        self,
        service: S3Service,
        key: str,
        options: WriteOptions,
        *,
        config: S3Config,
        attempt: S3Attempt,
        buffers: SessionBuffers,
        threads: BlockingThreads,
        md5: PartMd5,
        stall_timeout_s: float,
        describe: Callable[[str, S3Object], ObjectInfo],
    ) -> None:
        self._service = service
        self._key = key
        self._size_bytes = options.size_bytes
        self._config = config
        self._attempt = attempt
        self._buffers = buffers
        self._threads = threads
        self._md5 = md5
        self._part_timeout_s = stall_timeout_s / 2
        self._describe = describe
        self._sent: dict[int, _SentPart] = {}
        self._written_bytes = 0
        self._small_until = 0
        self._uploads = self._make_uploads()

    async def begin(self) -> None:
        """Create the upload at once when it is certain that there will be one."""
        threshold = self._config.multipart_threshold_bytes
        if self._size_bytes != 0 and (threshold == 0 or (self._size_bytes or 0) > threshold):
            await self._create_upload()

    def go_on(self, parts: Sequence[Mapping[str, object]], highest_number: int) -> None:
        """Continue an upload that has these parts. Up to the highest number that was ever used parts are
        small: a part of an earlier session that nobody overwrites makes some services refuse the whole.
        """
        for part in parts:
            number, size = part["PartNumber"], part["Size"]
            if isinstance(number, int) and isinstance(size, int):
                self._sent[number] = _SentPart(etag=str(part["ETag"]).strip('"'), size_bytes=size)
        self._written_bytes = sum(part.size_bytes for part in self._sent.values())
        self._small_until = highest_number
        self._uploads = self._make_uploads(
            first_number=len(self._sent) + 1, first_offset_bytes=self._written_bytes
        )

    async def write(self, data: memoryview, *, is_hole: bool = False) -> None:  # noqa: ARG002 - `WriteSession`'s signature
        if self._size_bytes is not None and self._uploads.size_bytes + data.nbytes > self._size_bytes:
            raise self._wrong_size(self._uploads.size_bytes + data.nbytes)
        await self._uploads.write(data)
        self._written_bytes += data.nbytes

    async def checkpoint(self) -> WriteMark | None:
        acknowledged = self._uploads.acknowledged(within_bytes=self._written_bytes)
        if self._attempt.upload_id is None:
            return None
        return WriteMark(size_bytes=acknowledged.size_bytes, state=self._attempt.state)

    async def keep(self) -> WriteMark | None:
        mark = await self.checkpoint()
        self._attempt.kept = mark is not None and self._attempt.is_named
        return mark if self._attempt.kept else None

    async def commit(self) -> ObjectInfo:
        total = self._uploads.size_bytes
        if self._size_bytes not in (None, total):
            raise self._wrong_size(total)
        if total == 0:
            await self._attempt.discard_upload()
        if self._attempt.upload_id is not None or self._uploads.started:
            self._uploads.send_current()
            await self._uploads.settle()
            made = await self._attempt.complete(await self._acknowledged_parts(total))
        else:
            part = self._uploads.current
            pieces = part.pieces if part is not None else []
            made = await self._attempt.put(pieces, await self._proof_of(pieces))
        await self._attempt.confirm(made, total)
        self._attempt.accepted = True
        return self._describe(self._key, made)

    async def aclose(self) -> None:
        """Nothing is on its way any more, and no buffer in use."""
        await self._uploads.aclose()

    def _make_uploads(self, *, first_number: int = 1, first_offset_bytes: int = 0) -> PartUploads:
        return PartUploads(
            self._buffers,
            send=self._send,
            target_bytes=self._target_bytes(),
            in_flight=self._config.parts_in_flight,
            first_number=first_number,
            first_offset_bytes=first_offset_bytes,
        )

    def _target_bytes(self) -> Callable[[int], int]:
        size, usual = self._size_bytes, self._config.part_bytes
        grown = growing(usual, max(usual, LARGEST_GROWN_BYTES))
        own = self._buffers.own * self._buffers.buffer_bytes

        def target_bytes(number: int) -> int:
            if number > MOST_PARTS:
                raise StoreError(
                    f"{self._service.store}/{self._key}: the image is too large for {MOST_PARTS} parts.",
                    store=self._service.store,
                    key=self._key,
                    hint="Give its size with the import, or raise part and buffer_budget of the store.",
                )
            if number <= self._small_until:
                return own
            if size is None:
                return grown(number)
            if number == 1 and size <= self._config.multipart_threshold_bytes:
                return size + 1  # Never full: the commit stores it by one request.
            return max(own, usual)

        return target_bytes

    async def _send(self, part: Part) -> None:
        upload_id = await self._create_upload()
        pieces = part.pieces
        checksum = await self._checksum(pieces)
        parameters: dict[str, object] = {"UploadId": upload_id, "PartNumber": part.number}
        headers: dict[str, str] = {}
        if checksum is not None and self._attempt.features.checksum is not None:
            parameters[self._attempt.features.checksum.parameter] = checksum
            headers[self._attempt.features.checksum.header] = checksum

        async def once(md5_of_it: Callable[[], Awaitable[str]] | None) -> str:
            url = await self._service.presigned("upload_part", key=self._key, **parameters)
            answer = await self._service.put(
                url,
                Pieces(pieces, stall_timeout_s=self._part_timeout_s),
                key=self._key,
                doing=f"sending part {part.number}",
                headers=headers,
                answer_timeout_s=self._part_timeout_s,
            )
            etag = answer.get("ETag", "").strip('"')
            md5 = await md5_of_it() if md5_of_it is not None else None
            if md5 is not None and etag != md5:
                raise StoreIOError(
                    f"{self._service.store}/{self._key}: part {part.number} arrived as something else"
                    f" ({etag}, not {md5}).",
                    store=self._service.store,
                    key=self._key,
                    hint='With encryption by KMS an ETag is no MD5: set part_check to "size" or "crc32".',
                )
            return etag

        try:
            if self._attempt.features.etag_is_md5:
                async with self._md5.of(pieces) as md5_of_it:
                    etag = await patiently(self._config.part_attempts, lambda: once(md5_of_it))
            else:
                etag = await patiently(self._config.part_attempts, lambda: once(None))
        except UploadGoneError as error:
            raise StoreError(
                f"{self._service.store}/{self._key}: the attempt was cleared by somebody else.",
                store=self._service.store,
                key=self._key,
            ) from error
        self._sent[part.number] = _SentPart(etag=etag, size_bytes=part.size_bytes, checksum=checksum)

    async def _create_upload(self) -> str:
        checksum = self._attempt.features.checksum
        return await self._attempt.create_upload(checksum=None if checksum is None else checksum.name)

    async def _proof_of(self, pieces: Sequence[memoryview]) -> Proof:
        """For an object in one piece, which must not become visible when it is damaged."""
        checksum = self._attempt.features.checksum
        if checksum is not None:
            value = await self._threads.run(checksum.of, pieces)
            return Proof(parameters={checksum.parameter: value}, headers={checksum.header: value})
        if self._attempt.features.etag_is_md5:
            async with self._md5.of(pieces) as md5_of_it:
                value = base64.b64encode(bytes.fromhex(await md5_of_it())).decode()
            return Proof(parameters={"ContentMD5": value}, headers={"Content-MD5": value})
        return Proof()

    async def _checksum(self, pieces: Sequence[memoryview]) -> str | None:
        checksum = self._attempt.features.checksum
        return None if checksum is None else await self._threads.run(checksum.of, pieces)

    async def _acknowledged_parts(self, total: int) -> list[Mapping[str, object]]:
        """The parts to put together, after a look at what the service says that it has."""
        upload_id = self._attempt.upload_id or ""
        try:
            stored = await patiently(
                self._config.part_attempts, lambda: list_parts(self._service, self._key, upload_id)
            )
        except UploadGoneError as error:
            raise StoreError(
                f"{self._service.store}/{self._key}: the attempt was cleared by somebody else.",
                store=self._service.store,
                key=self._key,
            ) from error
        has = {part["PartNumber"]: (str(part["ETag"]).strip('"'), part["Size"]) for part in stored}
        sent = {number: (part.etag, part.size_bytes) for number, part in self._sent.items()}
        if has != sent or sum(size for _, size in has.values()) != total:
            raise SizeMismatchError(
                f"{self._service.store}/{self._key}: the service has {len(has)} parts that are not the"
                f" {len(sent)} that were sent, {total} bytes in all.",
                store=self._service.store,
                key=self._key,
            )
        checksum = self._attempt.features.checksum
        parts: list[Mapping[str, object]] = []
        for number in sorted(self._sent):
            part = self._sent[number]
            named: dict[str, object] = {"PartNumber": number, "ETag": f'"{part.etag}"'}
            if checksum is not None and part.checksum is not None:
                named[checksum.parameter] = part.checksum
            parts.append(named)
        return parts

    def _wrong_size(self, size_bytes: int) -> SizeMismatchError:
        return SizeMismatchError(
            f"{self._service.store}/{self._key}: {size_bytes} bytes came, {self._size_bytes} were declared.",
            store=self._service.store,
            key=self._key,
            hint="Nothing was stored; correct the declared size or the source.",
        )
