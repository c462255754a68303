"""A job's changes as server-sent events."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from control.api.models import job_answer

if TYPE_CHECKING:
    from control.api.context import ApiContext
    from control.jobs.model import Job

PACE_S = 0.2
"""At most five events a second while bytes move."""
_KEEP_ALIVE_S = 10.0


async def stream_job(request: web.Request, context: ApiContext, job: Job) -> web.StreamResponse:
    """Send the job now, on each change, and at its end; then end. Ends early when the client leaves or the
    daemon does.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    with suppress(ConnectionError):
        await response.prepare(request)
        await _follow(response, context, job)
    return response


async def _follow(response: web.StreamResponse, context: ApiContext, job: Job) -> None:
    services = context.services
    loop = asyncio.get_running_loop()
    sent = ""
    sent_at = loop.time()
    with services.board.watch(job.id) as changed:
        while True:
            if changed.is_set() or not sent:
                changed.clear()
                job = await services.database.read(partial(services.queue.get, job_id=job.id))
            live = services.board.running.get(job.id)
            shown = job_answer(job, services).model_dump_json()
            if job.is_finished:
                await response.write(f"event: end\ndata: {shown}\n\n".encode())
                return
            if shown != sent:
                await response.write(f"event: job\ndata: {shown}\n\n".encode())
                sent, sent_at = shown, loop.time()
            elif loop.time() - sent_at >= _KEEP_ALIVE_S:
                await response.write(b": still here\n\n")
                sent_at = loop.time()
            if context.closing.is_set():
                return
            await _wait(changed, PACE_S if live is not None else sent_at + _KEEP_ALIVE_S - loop.time())


async def _wait(changed: asyncio.Event, at_most_s: float) -> None:
    """Until the next change, but never shorter than the pace allows."""
    await asyncio.sleep(min(PACE_S, max(0.0, at_most_s)) / 2)
    try:
        async with asyncio.timeout(max(0.0, at_most_s)):
            await changed.wait()
    except TimeoutError:
        return
