"""The API's answers, and the small requests. (The bodies of jobs are in `control/jobs/requests.py`.)"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime  # noqa: TC003 (pydantic reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from control.jobs.gc import Done, FindingKind
from control.jobs.ledger import FORGOTTEN_AFTER_S
from control.jobs.model import Job, JobKind, JobState
from control.jobs.planning import NO_METHOD
from control.jobs.report import describe_error
from control.jobs.requests import ImageId, Rate, StoreId, StrictModel
from dataplane.plan import STREAM
from dataplane.terms import VerifyMode
from dataplane.throttle import format_rate
from drivers.health import Use
from drivers.location import shown_location

if TYPE_CHECKING:
    from collections.abc import Iterable

    from control.catalog.images import Image, Location
    from control.jobs.gc import GcReport
    from control.jobs.limits import Limits
    from control.jobs.planning import JobPlan
    from control.jobs.services import Services
    from control.jobs.stores import ConfiguredStore
    from dataplane.errors import GlissadeError
    from dataplane.planning import Planned

MAX_PAGE = 1000


class Answer(BaseModel):
    """An answer; made by us, so it is checked by types only."""

    model_config = ConfigDict(frozen=True)


def utc_text(at: datetime | None) -> str | None:
    """A UTC time, with or without its zone, in ISO 8601 with milliseconds."""
    return None if at is None else f"{at.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


class PageQuery(StrictModel):
    """Which part of a list: at most `limit`, after `marker`."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100
    marker: ImageId | None = None


class JobsQuery(PageQuery):
    """Which jobs to list."""

    state: JobState | None = None
    kind: JobKind | None = None
    image_id: ImageId | None = None
    batch_id: ImageId | None = None


class ImagesQuery(PageQuery):
    """Which images to list."""

    status: Annotated[str, Field(pattern=r"^[a-z_]{1,30}$")] | None = None
    missing: Literal["digests"] | None = None


class DataQuery(StrictModel):
    """Where to read an image from."""

    store: StoreId | None = None


class JobPatch(StrictModel):
    """What can be changed about a job that has not ended."""

    rate_limit: Rate


class GcRequest(StrictModel):
    """What to look for and what to remove. `stores` empty: all."""

    stores: list[StoreId] = Field(default_factory=list, max_length=1000)
    dry_run: bool = True
    min_age_s: Annotated[float, Field(ge=0, le=10**9)] = FORGOTTEN_AFTER_S
    foreign_attempts: bool = False


class FindingAnswer(Answer):
    """One thing that gc found; see `control.jobs.gc`."""

    kind: FindingKind
    store: str
    done: Done
    reason: str
    key: str | None
    attempt: str | None
    job_id: str | None
    size_bytes: int | None
    since: str | None


class GcStoreAnswer(Answer):
    """How much gc saw in one store."""

    store: str
    objects: int
    attempts: int
    foreign: int
    listed: bool


class GcAnswer(Answer):
    """What gc found. `left_out` findings are only counted."""

    dry_run: bool
    ok: bool
    findings: list[FindingAnswer]
    counts: dict[FindingKind, int]
    left_out: int
    stores: list[GcStoreAnswer]


class LimitsPatch(StrictModel):
    """Rates to change; what is not named stays as it is."""

    node: Rate | None = None
    stores: dict[StoreId, Rate] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.node is None and not self.stores:
            raise PydanticCustomError("empty", "names no limit to change")
        return self


class ProgressAnswer(Answer):
    """How far a running job is; at another node than the one that works on it, how far it was when that one
    renewed its lease. `stalled_s`: for how long no byte has moved, when that is too long; else null.
    """

    phase: str
    size_bytes: int | None
    bytes_done: int
    rate_bytes_per_s: float
    eta_s: float | None
    stalled_s: float | None = None


class LeaseAnswer(Answer):
    """Who works on a running job, and how long ago it said so."""

    owner: str
    age_s: float
    ends_in_s: float


class MembershipAnswer(Answer):
    """A job's place in its batch: its name there, and the names of those it comes after."""

    id: str
    name: str
    after: list[str]


class WaitAnswer(Answer):
    """What a queued job waits for: a store that cannot be used, why, and what to do about it."""

    store: str
    reason: str
    hint: str


class JobAnswer(Answer):
    """A job. `attempt` counts from 1 when it has been started, `failures` those that failed; `stalled`: it
    runs, and no byte moves.
    """

    id: str
    kind: JobKind
    state: JobState
    phase: str
    image_id: str
    attempt: int
    failures: int
    next_attempt_at: str | None
    priority: int
    principal: str | None
    batch: MembershipAnswer | None
    lease: LeaseAnswer | None
    stalled: bool
    request: dict[str, Any]
    rate_limit: str
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    updated_at: str | None
    waiting_for: WaitAnswer | None
    progress: ProgressAnswer | None
    error: dict[str, Any] | None
    report: dict[str, Any] | None


class BatchAnswer(Answer):
    """A batch: its jobs in the order of submission."""

    id: str
    jobs: list[JobAnswer]


class JobsAnswer(Answer):
    """A page of jobs, newest first; `next` is the marker of the next page."""

    jobs: list[JobAnswer]
    next: str | None


class UseAnswer(Answer):
    """Whether a store can be used in one way now; `since` is null where the configuration forbids it."""

    works: bool
    reason: str
    since: str | None


class HealthAnswer(Answer):
    """How a store is."""

    state: Literal["up", "read_only", "down", "unknown"]
    reason: str
    since: str
    checked_at: str | None
    read: UseAnswer
    add: UseAnswer
    delete: UseAnswer


class CapabilitiesAnswer(Answer):
    """What a store can do."""

    writable: bool
    deletable: bool
    sparse: bool
    ranged_read: bool
    offload: bool


class StoreAnswer(Answer):
    """A configured store."""

    id: str
    type: str
    description: str
    weight: int
    read_only: bool
    default: bool
    health: HealthAnswer
    capabilities: CapabilitiesAnswer
    free_bytes: int | None
    total_bytes: int | None
    rate_limit: str
    concurrency: int


class StoresAnswer(Answer):
    """All configured stores."""

    stores: list[StoreAnswer]


class ProblemAnswer(Answer):
    """Why something would not work now."""

    code: str
    message: str
    hint: str
    store: str | None


class PlannedAnswer(Answer):
    """What would be done for one destination."""

    store: str
    method: str
    reason: str
    bytes_through: int | None
    read_back: bool
    verify: Literal["read back", "same stored bytes", "digests while writing", "size", "nothing"]
    problem: ProblemAnswer | None


class PlannedSourceAnswer(Answer):
    """What becomes of the place that the image is read from; `store` is null for an import."""

    store: str | None
    after: Literal["kept", "deleted"]
    reason: str
    problem: ProblemAnswer | None


class PlanAnswer(Answer):
    """What a job would do."""

    kind: JobKind
    image_id: str | None
    size_bytes: int | None
    must_read: bool
    bytes_read: int | None
    bytes_through: int | None
    destinations: list[PlannedAnswer]
    source: PlannedSourceAnswer


class LimitsAnswer(Answer):
    """The rate limits of the node and of each store."""

    node: str
    stores: dict[str, str]


class LocationAnswer(Answer):
    """One place of an image. `status`: `active`, or `quarantined` when its bytes were found not to be the
    image; then `reason` says how they differ, `since` when and `job_id` by which job it was found.
    """

    store: str
    url: str
    status: str
    reason: str | None = None
    since: str | None = None
    job_id: str | None = None


class ImageAnswer(Answer):
    """An image of the catalogue."""

    id: str
    name: str | None
    status: str
    size: int | None
    virtual_size: int | None
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    disk_format: str | None
    container_format: str | None
    created_at: str | None
    updated_at: str | None
    stores: list[str]
    locations: list[LocationAnswer]


class ImagesAnswer(Answer):
    """A page of images, newest first."""

    images: list[ImageAnswer]
    next: str | None


class AliveAnswer(Answer):
    """The event loop runs."""

    alive: bool
    version: str


class ReadyAnswer(Answer):
    """Whether the daemon takes work; the reasons when it does not."""

    ready: bool
    reasons: list[str]
    version: str


def job_answer(job: Job, services: Services) -> JobAnswer:
    """The job as the API shows it, with its live part, if it runs here."""
    progress = _progress(job, services)
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        state=job.state,
        phase=job.phase,
        image_id=job.image_id,
        attempt=job.epoch,
        failures=job.failures,
        next_attempt_at=utc_text(job.next_attempt_at),
        priority=job.priority,
        principal=job.principal,
        batch=_membership(job),
        lease=_lease(job),
        stalled=progress is not None and progress.stalled_s is not None,
        request=shown_request(job),
        rate_limit=format_rate(job.rate_limit),
        created_at=utc_text(job.created_at),
        started_at=utc_text(job.started_at),
        finished_at=utc_text(job.finished_at),
        updated_at=utc_text(job.updated_at),
        waiting_for=_waiting_for(job, services),
        progress=progress,
        error=dict(job.error) if job.error is not None else None,
        report=dict(job.report) if job.report is not None else None,
    )


def _progress(job: Job, services: Services) -> ProgressAnswer | None:
    if job.state is not JobState.RUNNING:
        return None
    running = services.board.running.get(job.id)
    if running is not None:
        return ProgressAnswer(**running.facts(job.phase))
    return None if job.progress is None else ProgressAnswer(**job.progress)


def _lease(job: Job) -> LeaseAnswer | None:
    age_s = job.lease_age_s
    if age_s is None or job.owner is None or job.lease_until is None:
        return None
    ends_in_s = (job.lease_until - job.read_at).total_seconds()
    return LeaseAnswer(owner=job.owner, age_s=round(age_s, 3), ends_in_s=round(ends_in_s, 3))


def _membership(job: Job) -> MembershipAnswer | None:
    if job.batch_id is None:
        return None
    return MembershipAnswer(id=job.batch_id, name=job.batch_name or "", after=list(job.batch_after or ()))


def batch_answer(batch_id: str, jobs: Iterable[Job], services: Services) -> BatchAnswer:
    """These jobs as a batch."""
    return BatchAnswer(id=batch_id, jobs=[job_answer(job, services) for job in jobs])


def _waiting_for(job: Job, services: Services) -> WaitAnswer | None:
    store = job.waiting_for
    if store is None or job.state is not JobState.QUEUED:
        return None
    obstacle = services.why_unusable(store)
    if obstacle is None:
        return WaitAnswer(store=store, reason=f"{store}: can be used again.", hint="The job goes on shortly.")
    return WaitAnswer(store=store, reason=obstacle.message, hint=obstacle.hint)


def shown_request(job: Job) -> dict[str, Any]:
    """The request as it was sent, except for the query of a URL (a presigned one is a secret) and tokens."""
    request = dict(job.request)
    if job.kind is JobKind.REGISTER:
        request["url"] = shown_location(str(request["url"]))
    if isinstance(remote := request.get("remote"), dict):
        request["remote"] = {name: value for name, value in remote.items() if name != "sealed_token"}
    source = request.get("source")
    if isinstance(source, dict) and source.get("url"):
        try:
            parts = urlsplit(source["url"])
        except ValueError:
            return {**request, "source": {"url": "..."}}
        if parts.query:
            request["source"] = {**source, "url": urlunsplit(parts._replace(query="..."))}
    return request


def store_answer(store: ConfiguredStore, services: Services) -> StoreAnswer:
    """The store as the API shows it, with its health as last seen."""
    can = store.driver.capabilities
    health = services.health.status(store.id)

    def use_answer(use: Use) -> UseAnswer:
        if forbidden := services.forbidden(store.id, use):
            return UseAnswer(works=False, reason=forbidden, since=None)
        one = health.uses[use]
        return UseAnswer(works=health.works_for(use), reason=one.reason, since=utc_text(one.since))

    return StoreAnswer(
        id=store.id,
        type=store.type,
        description=store.options.description,
        weight=store.options.weight,
        read_only=store.read_only,
        default=store.is_default,
        health=HealthAnswer(
            state=health.state.value,
            reason=health.reason,
            since=utc_text(health.since) or "",
            checked_at=utc_text(health.checked_at),
            read=use_answer(Use.READ),
            add=use_answer(Use.ADD),
            delete=use_answer(Use.DELETE),
        ),
        capabilities=CapabilitiesAnswer(
            writable=not store.read_only,
            deletable=store.may_delete,
            sparse=can.sparse,
            ranged_read=can.ranged_read,
            offload=can.copy_from is not None,
        ),
        free_bytes=health.free_bytes,
        total_bytes=health.total_bytes,
        rate_limit=format_rate(services.limits.store(store.id).rate_bytes_per_s),
        concurrency=store.options.concurrency,
    )


def plan_answer(kind: str, plan: JobPlan) -> PlanAnswer:
    """The plan as the API shows it."""
    return PlanAnswer(
        kind=JobKind(kind),
        image_id=plan.image_id,
        size_bytes=plan.size_bytes,
        must_read=plan.must_read,
        bytes_read=plan.bytes_read,
        bytes_through=plan.bytes_through,
        destinations=[
            PlannedAnswer(
                store=one.store,
                method=one.method,
                reason=one.reason,
                bytes_through=one.bytes_through,
                read_back=one.read_back,
                verify=_checked(one, plan.verify),
                problem=_problem(one.error),
            )
            for one in plan.destinations
        ],
        source=PlannedSourceAnswer(
            store=plan.source.store,
            after="deleted" if plan.source.deleted else "kept",
            reason=plan.source.reason,
            problem=_problem(plan.source.error),
        ),
    )


def _checked(
    planned: Planned, mode: VerifyMode
) -> Literal["read back", "same stored bytes", "digests while writing", "size", "nothing"]:
    if planned.error is not None or planned.method == NO_METHOD:
        return "nothing"
    if planned.read_back:
        return "read back"
    if planned.shares_storage:
        return "same stored bytes"
    if planned.method == STREAM and mode is not VerifyMode.NONE:
        return "digests while writing"
    return "size"


def _problem(error: GlissadeError | None) -> ProblemAnswer | None:
    return None if error is None else ProblemAnswer(**describe_error(error))


def limits_answer(limits: Limits) -> LimitsAnswer:
    """The limits as the API shows them."""
    return LimitsAnswer(
        node=format_rate(limits.node.rate_bytes_per_s),
        stores={name: format_rate(bucket.rate_bytes_per_s) for name, bucket in limits.stores.items()},
    )


def gc_answer(report: GcReport, *, dry_run: bool) -> GcAnswer:
    """What gc found, as the API shows it."""
    return GcAnswer(
        dry_run=dry_run,
        ok=report.is_well,
        findings=[FindingAnswer(**{**asdict(one), "since": utc_text(one.since)}) for one in report.findings],
        counts=report.counts,
        left_out=sum(report.counts.values()) - len(report.findings),
        stores=[GcStoreAnswer(**asdict(one)) for one in report.stores],
    )


def image_answer(image: Image) -> ImageAnswer:
    """The image as the API shows it."""
    return ImageAnswer(
        id=image.id,
        name=image.name,
        status=image.status,
        size=image.size_bytes,
        virtual_size=image.virtual_size_bytes,
        checksum=image.checksum,
        os_hash_algo=image.os_hash_algo,
        os_hash_value=image.os_hash_value,
        disk_format=image.disk_format,
        container_format=image.container_format,
        created_at=utc_text(image.created_at),
        updated_at=utc_text(image.updated_at),
        stores=list(dict.fromkeys(place.store for place in image.locations)),
        locations=[_location_answer(place) for place in image.locations],
    )


def _location_answer(place: Location) -> LocationAnswer:
    quarantine = place.quarantine
    if quarantine is None:
        return LocationAnswer(store=place.store, url=shown_location(place.url), status=place.status)
    return LocationAnswer(
        store=place.store,
        url=shown_location(place.url),
        status="quarantined",
        reason=quarantine.reason,
        since=utc_text(quarantine.since),
        job_id=quarantine.job_id,
    )
