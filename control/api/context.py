"""What the handlers work with; one per daemon, found under `CONTEXT` in the application."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from control.api.auth.caller import Caller
from control.config.settings import ImageSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from control.api.auth.authenticating import Authentication
    from control.api.auth.policy import Policy
    from control.api.metrics import Metrics
    from control.jobs.gc import Collector
    from control.jobs.service import JobService
    from control.jobs.services import Services
    from control.jobs.uploads import Uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """`not_ready` says why the daemon takes no work; empty when it does. `closing` is set when long answers
    must end.
    """

    services: Services
    jobs: JobService
    uploads: Uploads
    collector: Collector
    metrics: Metrics
    auth: Authentication
    version: str
    not_ready: Callable[[], list[str]]
    images: ImageSettings = field(default_factory=ImageSettings)
    store_configs: Mapping[str, object] = field(default_factory=dict)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def policy(self) -> Policy:
        """Who may do what."""
        return self.auth.policy


CONTEXT = web.AppKey("context", ApiContext)
REQUEST_ID = web.RequestKey("request_id", str)
CALLER = web.RequestKey("caller", Caller)


def json_answer(
    answer: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """A model as the JSON answer."""
    return web.Response(
        text=answer.model_dump_json(), status=status, content_type="application/json", headers=headers
    )
