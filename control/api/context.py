"""What the handlers work with; one per daemon, found under `CONTEXT` in the application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from control.api.metrics import Metrics
    from control.api.peers import PeerPolicy
    from control.jobs.service import JobService
    from control.jobs.services import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """`not_ready` says why the daemon takes no work; empty when it does. `closing` is set when long answers
    must end.
    """

    services: Services
    jobs: JobService
    metrics: Metrics
    peers: PeerPolicy
    version: str
    not_ready: Callable[[], list[str]]
    closing: asyncio.Event = field(default_factory=asyncio.Event)


CONTEXT = web.AppKey("context", ApiContext)
REQUEST_ID = web.RequestKey("request_id", str)
PRINCIPAL = web.RequestKey("principal", str)


def json_answer(
    answer: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A model as the JSON answer."""
    return web.Response(
        text=answer.model_dump_json(), status=status, content_type="application/json", headers=headers
    )
