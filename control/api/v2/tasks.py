"""/v2/images/{id}/tasks and /v2/tasks: our jobs, as Glance's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from control.api.context import CALLER, CONTEXT
from control.api.models import shown_request
from control.api.openapi.describing import Reply, described
from control.api.v2.access import enforce, target_of, visible_image
from control.api.v2.filters import MOST, read_limit
from control.api.v2.shapes import IMAGE_TASKS, LIMIT, MARKER, TASK, TASKS
from control.api.v2.views import stamp
from control.api.wording import knows_places, plain_words_of_job
from control.catalog.errors import ImageNotFoundError
from control.jobs.errors import JobNotFoundError
from control.jobs.model import JobKind, JobState
from control.jobs.queue import JobFilter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from control.catalog.images import Image
    from control.jobs.model import Job

routes = web.RouteTableDef()

_TYPES: Final[Mapping[JobKind, str]] = {
    JobKind.FILL: "api_image_import",
    JobKind.COPY: "api_image_import",
    JobKind.MOVE: "api_image_import",
    JobKind.IMPORT: "import",
    JobKind.REGISTER: "location_import",
    JobKind.HASH: "location_import",
}
"""Jobs that Glance would call tasks: those that its users ask for and wait for."""
_METHODS: Final[Mapping[JobKind, str]] = {JobKind.COPY: "copy-image", JobKind.MOVE: "glissade-move"}


@routes.get("/v2/images/{id}/tasks", allow_head=False)
@described(replies={200: Reply(IMAGE_TASKS)}, raises=[ImageNotFoundError])
async def of_image(request: web.Request) -> web.Response:
    """What was and is done to give the image its bytes, newest first: for who owns it. Others who see it are
    told of none.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    services = context.services
    image = await services.database.read(lambda tx: visible_image(request, tx))
    enforce(request, "get_image", image)
    enforce(request, "get_tasks", image)
    is_owner = image.owner is not None and image.owner == caller.project_id
    if not (is_owner or caller.is_admin):
        return web.json_response({"tasks": []})
    found = await services.database.read(
        lambda tx: services.queue.page(tx, JobFilter(image_id=image.id), limit=MOST)
    )
    shown = _Shown(
        places=context.policy.allows(caller, "fetch_image_location", target_of(image, caller)),
        texts=knows_places(caller),
    )
    return web.json_response({"tasks": [_of_image(job, image, shown) for job in found if job.kind in _TYPES]})


@routes.get("/v2/tasks", allow_head=False)
@described(query=[LIMIT, MARKER], replies={200: Reply(TASKS)}, raises=[JobNotFoundError])
async def page(request: web.Request) -> web.Response:
    """All of them, for operators."""
    context = request.app[CONTEXT]
    context.policy.enforce(request[CALLER], "tasks_api_access", {})
    services = context.services
    limit = read_limit(request.query)
    marker = None if (given := request.query.get("marker")) is None else _task_id(given)
    found = await services.database.read(
        lambda tx: services.queue.page(tx, JobFilter(kinds=frozenset(_TYPES)), limit=limit + 1, marker=marker)
    )
    answer: dict[str, Any] = {
        "tasks": [_summary(job) for job in found[:limit]],
        "first": "/v2/tasks",
        "schema": "/v2/schemas/tasks",
    }
    if len(found) > limit:
        answer["next"] = f"/v2/tasks?limit={limit}&marker={found[limit - 1].id}"
    return web.json_response(answer)


@routes.get("/v2/tasks/{id}", allow_head=False)
@described(replies={200: Reply(TASK)}, raises=[JobNotFoundError])
async def show(request: web.Request) -> web.Response:
    """One of them."""
    context, caller = request.app[CONTEXT], request[CALLER]
    context.policy.enforce(caller, "tasks_api_access", {})
    services, task_id = context.services, _task_id(request.match_info["id"])
    job = await services.database.read(lambda tx: services.queue.get(tx, task_id))
    if job.kind not in _TYPES:
        raise JobNotFoundError(f"There is no task {task_id[:64]}.")
    shown = _Shown(places=context.policy.allows(caller, "fetch_image_location"), texts=knows_places(caller))
    return web.json_response({**_summary(job), **_told(job, shown)})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What a caller is to see of tasks: where bytes lie, and errors in all their words."""

    places: bool
    texts: bool


def _task_id(given: str) -> str:
    """Raises `JobNotFoundError` for what no database can look for."""
    if "\0" in given:
        raise JobNotFoundError(f"There is no task {given[:64]!r}.")
    return given


def _summary(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "type": _TYPES[job.kind],
        "status": _status(job),
        "owner": job.principal,
        "created_at": stamp(job.created_at),
        "updated_at": stamp(job.updated_at),
        "expires_at": None,
        "self": f"/v2/tasks/{job.id}",
        "schema": "/v2/schemas/task",
    }


def _of_image(job: Job, image: Image, shown: _Shown) -> dict[str, Any]:
    """As Glance shows the rows of its table."""
    return {
        "id": job.id,
        "type": _TYPES[job.kind],
        "status": _status(job),
        "owner": image.owner,
        "expires_at": None,
        "created_at": _row_time(job.created_at),
        "updated_at": _row_time(job.updated_at),
        "deleted_at": None,
        "deleted": False,
        "image_id": job.image_id,
        "request_id": job.request_id,
        "user_id": job.principal,
        **_told(job, shown),
    }


def _told(job: Job, shown: _Shown) -> dict[str, Any]:
    return {
        "input": _input(job, shown),
        "result": _result(job),
        "message": _message(job, shown),
    }


def _status(job: Job) -> str:
    if job.state is JobState.QUEUED:
        return "pending"
    if job.state is JobState.RUNNING:
        return "processing"
    return "success" if job.state in (JobState.SUCCEEDED, JobState.IGNORED) else "failure"


def _input(job: Job, shown: _Shown) -> dict[str, Any]:
    asked = shown_request(job)
    if job.kind in (JobKind.REGISTER, JobKind.HASH):
        digest = {key: asked[key] for key in ("os_hash_algo", "os_hash_value") if asked.get(key)}
        place = {"loc_url": asked.get("url")} if shown.places else {}
        return {"image_id": job.image_id, **place, "validation_data": digest}
    stores = asked.get("stores") or [asked.get("to_store")]
    method = {"name": asked.get("method") or _METHODS.get(job.kind, "import")}
    source = asked.get("source") or {}
    if isinstance(remote := asked.get("remote"), dict):
        method |= {
            "glance_region": remote["region"],
            "glance_image_id": remote["image_id"],
            "glance_service_interface": remote.get("interface", "public"),
        }
    # What users let be downloaded they named themselves; other imports are operators'.
    if source.get("url") and (shown.places or job.kind is JobKind.FILL):
        method["uri"] = source["url"]
    wanted = {
        "method": method,
        "stores": stores,
        "all_stores_must_succeed": asked.get("all_stores_must_succeed", True),
    }
    return {"image_id": job.image_id, "import_req": wanted, "backend": stores}


def _result(job: Job) -> dict[str, Any] | None:
    return {"image_id": job.image_id} if job.is_finished else None


def _message(job: Job, shown: _Shown) -> str:
    """Why it failed, or how far it is."""
    if job.error is None:
        return "" if job.is_finished else job.phase
    if not shown.texts and (words := plain_words_of_job(job.error)) is not None:
        return words
    text = " ".join(str(job.error[part]) for part in ("message", "hint") if job.error.get(part))
    if job.kind is JobKind.REGISTER and not shown.places:
        return text.replace(str(shown_request(job)["url"]), "The place")
    return text


def _row_time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")
