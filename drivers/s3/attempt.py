"""One writing of one object: what it makes in the bucket, its create-only act, and how all that is undone."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from dataplane.errors import (
    AlreadyExistsError,
    CheckpointLostError,
    NotFoundError,
    SizeMismatchError,
    StalledError,
    StoreError,
    UnavailableError,
)
from dataplane.tasks import joint_tasks
from drivers.patience import patiently, to_the_end
from drivers.s3.errors import NoBucketError, PreconditionError, UploadGoneError
from drivers.s3.features import RESERVED, Ground
from drivers.s3.marker import Mark, Marks, claim_key, marker_key
from drivers.s3.service import ATTEMPT, MADE_BY
from drivers.wire import Pieces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence

    from dataplane.store import WriteMark
    from drivers.s3.features import FeatureProbe, PutFeatures
    from drivers.s3.service import S3Object, S3Service

T = TypeVar("T")

log = logging.getLogger(__name__)

_CLAIM_PATIENCE_S: Final = 30.0
_UNDO_PATIENCE_S: Final = 60.0
_HURRIED_UNDO_PATIENCE_S: Final = 0.8
"""Of a cancelled caller; see `drivers/patience.py`."""
_SETTLING_S: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What goes with a body so that the service refuses it when it arrives as something else."""

    parameters: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


class S3Attempt:
    """Belongs to one session, or one offload. `accepted` is set when the object was committed; then, and when
    it is `kept`, `undo` leaves everything as it is.
    """

    def __init__(
        self,
        service: S3Service,
        probe: FeatureProbe,
        key: str,
        *,
        attempt: str | None,
        tries: int,
        stall_timeout_s: float,
    ) -> None:
        self._service = service
        self._probe = probe
        self._marks = Marks(service)
        self._key = key
        self._attempt = attempt
        self._mark_key = None if attempt is None else marker_key(service.store, key, attempt)
        self._tries = tries
        self._stall_timeout_s = stall_timeout_s
        self._made_by = secrets.token_hex(16)
        self._upload_id: str | None = None
        self._creating = asyncio.Lock()
        self._is_marked = False
        self._may_have_lost_upload = False
        self._may_have_made_object = False
        self._may_still_be_copied = False
        self._may_hold_claim = False
        self._holds_claim = False
        self._features: PutFeatures | None = None
        self._last_mark = Mark(made_by=self._made_by)
        self.accepted = False
        self.kept = False

    @property
    def upload_id(self) -> str | None:
        return self._upload_id

    @property
    def is_named(self) -> bool:
        """Whether anybody can come back for it."""
        return self._attempt is not None

    @property
    def state(self) -> dict[str, object]:
        """What another session needs to go on with the upload."""
        return {"attempt": self._attempt, "id": self._made_by, "upload": self._upload_id}

    async def begin(self, *, copied_bytes: int | None = None) -> None:
        """Leave the mark. Raises `AlreadyExistsError` when the key is taken, `StoreError` when this attempt
        has data already. `copied_bytes`: for an object of this size that `copy` will make at once; whether
        the key is taken is looked at there.
        """
        if copied_bytes is None and await self._head() is not None:
            raise self._taken()
        found = None
        if self._mark_key is not None:
            mark_key = self._mark_key
            found = await self._patiently(lambda: self._marks.read(self._key, mark_key))
        if found is not None and found.has_data:
            raise StoreError(
                f"{self._service.store}/{self._key}: the attempt {self._attempt} has data already.",
                store=self._service.store,
                key=self._key,
                hint="Clear the attempt before it begins again.",
            )
        await self._write_first_mark(Mark(made_by=self._made_by, copied_bytes=copied_bytes))

    async def resume(self, mark: WriteMark) -> tuple[Sequence[Mapping[str, object]], int]:
        """Take over what an earlier session left: its upload becomes this attempt's. Returns the parts that
        make up the mark's size, and the highest number of a part that is there. Raises
        `CheckpointLostError`, with nothing changed.
        """
        attempt, made_by, upload = (mark.state.get(name) for name in ("attempt", "id", "upload"))
        if not isinstance(made_by, str) or not isinstance(upload, str):
            raise self._lost("its mark cannot be understood")
        self.kept = True  # Whatever goes wrong here, the upload can be resumed again.
        if await self._head() is not None:
            raise self._taken()
        parts = await self._parts_of(upload)
        usable: list[Mapping[str, object]] = []
        size = 0
        for number, part in enumerate(parts, start=1):
            if part["PartNumber"] != number or size + part["Size"] > mark.size_bytes:
                break
            size += part["Size"]
            usable.append(part)
        if size != mark.size_bytes:
            raise self._lost(f"the service has {size} bytes of it in whole parts, not {mark.size_bytes}")
        self._made_by, self._upload_id = made_by, upload
        await self._write_first_mark(Mark(made_by=made_by, upload_id=upload))
        if isinstance(attempt, str) and attempt != self._attempt:
            former = marker_key(self._service.store, self._key, attempt)
            await self._patiently(lambda: self._marks.remove(self._key, former))
        self.kept = False
        return usable, max((part["PartNumber"] for part in parts), default=0)

    async def create_upload(self, *, checksum: str | None) -> str:
        """The multipart upload's id; created by the first call. `checksum`: the algorithm of those that will
        come with its parts.
        """
        async with self._creating:
            if self._upload_id is None:
                await to_the_end(self._create_upload(checksum))
        if self._upload_id is None:
            raise AssertionError("an upload was created or an error raised")
        return self._upload_id

    async def put(self, pieces: Sequence[memoryview], proof: Proof) -> S3Object:
        """The create-only act of an object in one piece. Cancelled, it is done or will not happen, as far as
        the service can still be asked; likewise the other two.
        """
        return await to_the_end(self._put(pieces, proof))

    async def complete(self, parts: Sequence[Mapping[str, object]]) -> S3Object:
        """The create-only act of an object in parts."""
        return await to_the_end(self._complete(parts))

    async def copy(self, parameters: Mapping[str, object]) -> S3Object:
        """The create-only act of an object that the service copies by itself."""
        return await to_the_end(self._copy(parameters))

    async def confirm(
        self,
        made: S3Object,
        size_bytes: int,
        *,
        also: Callable[[], Coroutine[None, None, None]] | None = None,
    ) -> None:
        """The object has the right size, and nobody cleared the attempt meanwhile; raises what is wrong, also
        what `also` raises. The last step: others may commit the key from now on.
        """
        if made.size_bytes != size_bytes:
            raise SizeMismatchError(
                f"{self._service.store}/{self._key}: the service has {made.size_bytes} bytes of"
                f" {size_bytes}.",
                store=self._service.store,
                key=self._key,
            )
        async with joint_tasks() as group:
            group.create_task(self._give_claim_back())
            # Whoever cleared the attempt looked before the object was there: it is undone.
            group.create_task(self._require_mark())
            if also is not None:
                group.create_task(also())

    @property
    def features(self) -> PutFeatures:
        """What the service can do; known from the beginning on."""
        if self._features is None:
            raise RuntimeError("the attempt has not begun")
        return self._features

    @property
    def metadata(self) -> dict[str, str]:
        """The user metadata of the object."""
        found = {MADE_BY: self._made_by}
        if self._attempt is not None and self._attempt.isascii() and self._attempt.isprintable():
            found[ATTEMPT] = self._attempt
        return found

    async def discard_upload(self) -> None:
        """Give up the upload, for an object that turned out to need none."""
        upload_id = self._upload_id
        if upload_id is not None:
            await self._patiently(lambda: self._service.abort_upload(self._key, upload_id))
            self._upload_id = None

    async def undo(self) -> None:
        """Take back everything that was not committed; what that takes is bounded in time. What cannot be
        taken back now keeps its mark, by which `clear` finds it.
        """
        if self.accepted or self.kept:
            return
        task = asyncio.current_task()
        is_hurried = task is not None and task.cancelling() > 0
        await to_the_end(self._undo(_HURRIED_UNDO_PATIENCE_S if is_hurried else _UNDO_PATIENCE_S))

    async def _undo(self, patience_s: float) -> None:
        try:
            async with asyncio.timeout(patience_s):
                await self.discard_upload()
                await self._find_lost_upload()
                if self._may_have_made_object:
                    found = await self._head()
                    if found is not None and found.made_by == self._made_by:
                        await self._patiently(lambda: self._service.delete(self._key, etag=found.etag))
                        self._may_still_be_copied = False
                await self._leave_claim()
                if self._may_still_be_copied:
                    return  # The mark tells `clear` to look for it later.
                if self._is_marked and self._mark_key is not None:
                    mark_key = self._mark_key
                    # Of trying what the service can do: without the mark nobody finds them.
                    await self._patiently(lambda: self._marks.abort_uploads_of(self._key, mark_key))
                    await self._patiently(lambda: self._marks.remove(self._key, mark_key))
        except (StoreError, TimeoutError) as error:
            log.warning(
                "%s/%s: an unfinished writing could not be cleared away (attempt %s): %s",
                self._service.store,
                self._key,
                self._attempt,
                error,
            )

    async def _create_upload(self, checksum: str | None) -> None:
        await self._require_mark()
        await self._write_mark(Mark(made_by=self._made_by, is_creating=True))
        asked = {} if checksum is None else {"ChecksumAlgorithm": checksum}

        async def create() -> None:
            self._may_have_lost_upload = True
            try:
                answer = await self._service.call(
                    "create_multipart_upload",
                    key=self._key,
                    doing="beginning its upload",
                    Key=self._key,
                    Metadata=self.metadata,
                    ContentType="application/octet-stream",
                    **asked,
                )
            except NoBucketError as error:
                # Our mark lies in the bucket. Swift makes the container of the parts with the first upload,
                # and tells those who come at the same moment that there is none.
                raise UnavailableError(error.message, store=error.store, key=error.key) from error
            self._upload_id = answer["UploadId"]

        tried = 0

        async def counted() -> None:
            nonlocal tried
            tried += 1
            await create()

        await self._patiently(counted)
        self._may_have_lost_upload = tried > 1
        await self._find_lost_upload()
        await self._write_mark(Mark(made_by=self._made_by, upload_id=self._upload_id))

    async def _find_lost_upload(self) -> None:
        """An upload may have been created whose id did not reach us."""
        if not self._may_have_lost_upload or self._mark_key is None:
            return
        mark_key = self._mark_key
        mark = await self._patiently(lambda: self._marks.read(self._key, mark_key))
        if mark is not None and mark.is_creating:
            ours = self._upload_id
            await self._patiently(
                lambda: self._marks.abort_announced_uploads(self._key, mark_key, mark, but=ours)
            )
        self._may_have_lost_upload = False

    async def _put(self, pieces: Sequence[memoryview], proof: Proof) -> S3Object:
        parameters: dict[str, object] = {"Metadata": self.metadata} | proof.parameters
        headers = {f"x-amz-meta-{name}": value for name, value in self.metadata.items()} | proof.headers
        if self.features.only_new:
            parameters["IfNoneMatch"] = "*"
            headers["If-None-Match"] = "*"

        async def act() -> None:
            url = await self._service.presigned("put_object", key=self._key, **parameters)
            body = Pieces(pieces, stall_timeout_s=self._stall_timeout_s)
            await self._service.put(url, body, key=self._key, doing="storing it", headers=headers)

        await self._require_mark()
        return await self._create_only(act, refuses=self.features.only_new)

    async def _complete(self, parts: Sequence[Mapping[str, object]]) -> S3Object:
        refuses = await self._patiently(lambda: self._probe.only_new_complete(self._ground))
        condition = {"IfNoneMatch": "*"} if refuses else {}

        async def act() -> None:
            await self._service.call(
                "complete_multipart_upload",
                key=self._key,
                doing="putting its parts together",
                Key=self._key,
                UploadId=self._upload_id,
                MultipartUpload={"Parts": list(parts)},
                **condition,
            )

        return await self._create_only(act, refuses=refuses)

    async def _copy(self, parameters: Mapping[str, object]) -> S3Object:
        async def act(condition: Mapping[str, object]) -> None:
            before, self._may_still_be_copied = self._may_still_be_copied, True
            try:
                answer = await self._service.call(
                    "copy_object",
                    key=self._key,
                    doing="copying it inside the service",
                    Key=self._key,
                    MetadataDirective="REPLACE",
                    Metadata=self.metadata,
                    **parameters,
                    **condition,
                )
            except StalledError:
                raise
            except StoreError:
                self._may_still_be_copied = before
                raise
            self._may_still_be_copied = before
            if not answer["CopyObjectResult"].get("ETag"):
                raise answer.nonsense()

        if self._probe.only_new_copy:
            try:
                return await self._create_only(lambda: act({"IfNoneMatch": "*"}), refuses=True)
            except PreconditionError:
                # The source is another one, or the service (Swift) takes the condition to mean the source.
                self._probe.only_new_copy_is_useless()
        return await self._create_only(lambda: act({}), refuses=False)

    async def _create_only(self, act: Callable[[], Awaitable[None]], *, refuses: bool) -> S3Object:
        """Do what makes the object visible, once, and only if there is none; `refuses`: the act itself is
        conditional. What happened is read from the object, not from the answer, which may be lost or lie:
        its metadata tell whether it is ours.
        """
        is_safe = refuses and self.features.is_atomic

        async def once() -> S3Object:
            problem: StoreError | None = None
            if not is_safe:
                await self._claim()
            try:
                if not is_safe and await self._service.head(self._key) is not None:
                    raise self._taken()
                self._may_have_made_object = True
                await act()
            except StoreError as error:
                problem = error
            # Once it is there, others see it when they look: they need not be kept away any longer.
            found = await self._head_and_give_claim_back() if problem is None else await self._head()
            if found is not None and found.made_by == self._made_by:
                return found
            if isinstance(problem, UploadGoneError):
                raise self._cleared() from problem
            if found is not None and (problem is None or isinstance(problem, PreconditionError)):
                raise self._taken() from problem
            raise problem or UnavailableError(
                f"{self._service.store}/{self._key}: was stored, says the service, and does not have it.",
                store=self._service.store,
                key=self._key,
            )

        if not is_safe:
            await self._claim()  # It has its own patience.
        return await self._patiently(once)

    async def _require_mark(self) -> None:
        if self._mark_key is not None:
            mark_key = self._mark_key
            if not await self._patiently(lambda: self._marks.exists(self._key, mark_key)):
                raise self._cleared()

    async def _claim(self) -> None:
        """One writing at a time commits this key: for services that overwrite whatever they are asked. It
        keeps Glissades from each other; against others there is only the look just before. `confirm` gives
        the claim back, or `undo`.
        """
        if not self.features.only_new or self._holds_claim:
            return
        place = claim_key(self._key)
        now = asyncio.get_running_loop().time
        deadline = now() + _CLAIM_PATIENCE_S
        self._may_hold_claim = True
        while True:
            began = now()
            try:
                await self._patiently(
                    lambda: self._marks.write(self._key, place, Mark(made_by=self._made_by), only_new=True)
                )
                if self.features.is_atomic:
                    self._holds_claim = True
                    return
                # Another one may have passed the check beside us. The last of them has it.
                await asyncio.sleep(max(_SETTLING_S, 3 * (now() - began)))
            except PreconditionError:
                pass
            holder = await self._patiently(lambda: self._marks.read(self._key, place))
            if holder is None:
                continue
            if holder.made_by == self._made_by:
                self._holds_claim = True
                return
            if holder.is_expired_claim:
                await self._patiently(lambda: self._marks.remove(self._key, place))
                continue
            if await self._head() is not None:
                raise self._taken()
            if now() > deadline:
                raise UnavailableError(
                    f"{self._service.store}/{self._key}: another writing of it is being committed.",
                    store=self._service.store,
                    key=self._key,
                )
            await asyncio.sleep(random.SystemRandom().uniform(0.02, 0.2))

    async def _head_and_give_claim_back(self) -> S3Object | None:
        async with joint_tasks() as group:
            looking = group.create_task(self._head())
            group.create_task(self._give_claim_back())
        return looking.result()

    async def _give_claim_back(self) -> None:
        if not self._may_hold_claim:
            return
        self._holds_claim = False
        place = claim_key(self._key)
        try:
            await self._patiently(lambda: self._marks.remove(self._key, place))
            self._may_hold_claim = False
        except StoreError as error:
            log.warning("%s/%s: %s stays: %s", self._service.store, self._key, place, error)

    async def _leave_claim(self) -> None:
        """Before the mark goes, which tells a later `clear` whose the claim is."""
        if self._may_hold_claim:
            place = claim_key(self._key)
            holder = await self._patiently(lambda: self._marks.read(self._key, place))
            if holder is not None and holder.made_by == self._made_by:
                await self._patiently(lambda: self._marks.remove(self._key, place))
            self._may_hold_claim = False

    async def _parts_of(self, upload_id: str) -> list[dict[str, int]]:
        try:
            return await self._patiently(lambda: list_parts(self._service, self._key, upload_id))
        except (UploadGoneError, NotFoundError) as error:
            raise self._lost("there is no such upload any more") from error

    async def _write_first_mark(self, mark: Mark) -> None:
        """From here on there is something to undo."""
        self._is_marked = self._mark_key is not None
        self._last_mark = mark
        await to_the_end(self._try_and_write(mark))

    async def _try_and_write(self, mark: Mark) -> None:
        self._features = await self._patiently(lambda: self._probe.about_put(self._ground))
        await self._write_mark(mark)

    @asynccontextmanager
    async def _ground(self) -> AsyncIterator[Ground]:
        """Where the service can be tried: our mark, or an object that is there only meanwhile."""
        if self._mark_key is not None:
            yield Ground(self._key, self._mark_key, self._last_mark.text)
            return
        ground = Ground(self._key, f"{RESERVED}probe-{self._made_by}", self._last_mark.text)
        mark = self._last_mark
        try:
            await self._marks.write(self._key, ground.key, mark)
            yield ground
        finally:
            await self._patiently(lambda: self._marks.remove(self._key, ground.key))

    async def _write_mark(self, mark: Mark) -> None:
        self._last_mark = mark
        if self._mark_key is not None:
            mark_key = self._mark_key
            await to_the_end(self._patiently(lambda: self._marks.write(self._key, mark_key, mark)))

    async def _head(self) -> S3Object | None:
        return await self._patiently(lambda: self._service.head(self._key))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(self._tries, work)

    def _taken(self) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"{self._service.store}/{self._key}: exists already; it was left as it is.",
            store=self._service.store,
            key=self._key,
        )

    def _cleared(self) -> StoreError:
        return StoreError(
            f"{self._service.store}/{self._key}: the attempt was cleared by somebody else.",
            store=self._service.store,
            key=self._key,
        )

    def _lost(self, why: str) -> CheckpointLostError:
        return CheckpointLostError(
            f"{self._service.store}/{self._key}: cannot go on with an earlier upload: {why}.",
            store=self._service.store,
            key=self._key,
        )


async def list_parts(service: S3Service, key: str, upload_id: str) -> list[dict[str, int]]:
    """The parts of an upload in the order of their numbers. Raises `UploadGoneError` or `NotFoundError`."""
    parts: list[dict[str, int]] = []
    position: dict[str, object] = {}
    while True:
        page = await service.call(
            "list_parts", key=key, doing="looking at its parts", Key=key, UploadId=upload_id, **position
        )
        parts += page.get("Parts", [])
        if not page.get("IsTruncated"):
            return sorted(parts, key=lambda part: part["PartNumber"])
        position = {"PartNumberMarker": page["NextPartNumberMarker"]}


async def clear(service: S3Service, key: str, attempt: str, *, keep_object: bool) -> bool:
    """`Driver.clear_attempt`."""
    marks = Marks(service)
    mark_key = marker_key(service.store, key, attempt)
    mark = await marks.read(key, mark_key)
    if mark is None:
        return False
    await marks.abort_uploads_of(key, mark_key)  # Of trying what the service can do.
    if mark.upload_id is not None:
        await service.abort_upload(key, mark.upload_id)
    elif mark.is_creating:
        await marks.abort_announced_uploads(key, mark_key, mark)
    made_object = await _take_object(service, key, mark, keep_object=keep_object)
    wait_s = 0.0 if made_object else mark.copy_may_come_for_s
    if wait_s:
        raise UnavailableError(
            f"{service.store}/{key}: the service may still be copying it for an attempt that was given up.",
            store=service.store,
            key=key,
            hint="Clear the attempt again later.",
            retry_after_s=wait_s,
        )
    claim = await marks.read(key, claim_key(key))
    if claim is not None and claim.made_by == mark.made_by:
        await marks.remove(key, claim_key(key))
    await marks.remove(key, mark_key)
    if not made_object:
        # A writer that still lives may have stored it between our look and the end of its mark, which it
        # looks for afterwards.
        made_object = await _take_object(service, key, mark, keep_object=keep_object)
    return made_object


async def _take_object(service: S3Service, key: str, mark: Mark, *, keep_object: bool) -> bool:
    """Whether the object is the work of the mark's attempt; deleted, unless it is to be kept."""
    found = await service.head(key)
    if found is None or found.made_by != mark.made_by:
        return False
    if not keep_object:
        try:
            await service.delete(key, etag=found.etag)
        except PreconditionError:
            return False  # Replaced since we looked.
    return True
