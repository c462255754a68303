"""The OpenAPI document is about this API, all of it and nothing else; and what the API answers is in it."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from control.api.app import ROUTES
from control.api.errors import InvalidRequestError
from control.api.openapi.describing import Reply, described
from control.api.openapi.document import UndescribedError, make_document
from control.api.openapi.serving import Document, documented
from control.api.v2.schemas import SCHEMAS, schema_of
from control.config.settings import ImageSettings
from tests.integration.fuzzing import GOOD, NOT_CALLED, Findings, Work, fuzz, fuzzed_daemon, operation_ids
from tests.integration.images_users import cloud
from tests.integration.in_process import Place, running, short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHECKED_IN = Path(__file__).parents[2] / "docs" / "openapi.json"
CASES = 5000
PROCESSES = 2
CANNOT_SUCCEED: Mapping[str, str] = {}
"""Operations that can never be answered with 2xx by the daemon that is fuzzed, and why."""


@pytest.fixture
def root() -> Iterator[Path]:
    yield from short_directory()


@pytest.fixture
def quick_root() -> Iterator[Path]:
    """In memory, where there is such a place: thousands of small transactions are no test of a disk."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="glissade-", dir=where) as name:
        yield Path(name)


def test_the_document_that_is_checked_in_is_that_of_the_code() -> None:
    assert CHECKED_IN.read_text() == Document(ROUTES, ImageSettings()).text, "run `make openapi`"


async def test_every_route_is_in_the_document_that_is_served_and_nothing_else(root: Path) -> None:
    place = Place(root, images={"disk_formats": ("raw", "abc")})
    async with running(place) as daemon:
        document = await daemon.get("/openapi.json")
    served = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert served == {(one.method, one.path) for one in documented(ROUTES)}
    names = operation_ids(document)
    assert len(set(names)) == len(names)
    formats = document["components"]["schemas"]["NewImage"]["properties"]["disk_format"]["enum"]
    assert formats == [None, "raw", "abc"], "the document is that of this daemon's settings"


async def test_the_document_is_for_whoever_may_ask_anything(root: Path) -> None:
    async with cloud(root) as api:
        assert await api["reader"].status("GET", "/openapi.json") == 200
        stranger = api["ann"].__class__(api["ann"].http, api["ann"].url, "gls_nobody")
        assert await stranger.status("GET", "/openapi.json") == 401


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = json.loads(CHECKED_IN.read_text())

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for one in part.values():
                yield from references(one)
        elif isinstance(part, list):
            for one in part:
                yield from references(one)

    seen = set(references(document))
    assert len(seen) > 30
    for reference in seen:
        found = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]


def test_a_route_that_says_nothing_about_itself_is_refused() -> None:
    routes = web.RouteTableDef()

    @routes.get("/v1/bare")
    async def bare(_request: web.Request) -> web.Response:
        return web.Response()

    with pytest.raises(UndescribedError, match="GET /v1/bare"):
        documented([*ROUTES, routes])


def test_statuses_come_from_the_errors_that_are_named() -> None:
    routes = web.RouteTableDef()

    @routes.get("/v1/one")
    @described(replies={200: Reply()}, raises=[InvalidRequestError])
    async def one(_request: web.Request) -> web.Response:
        """Something. And more."""
        return web.Response()

    document = make_document(documented([routes]), settings=ImageSettings(), version="1")
    operation = document["paths"]["/v1/one"]["get"]
    assert operation["summary"] == "Something"
    assert "`invalid_request`" in operation["responses"]["400"]["description"]
    assert "500" not in operation["responses"]


def test_the_schemas_that_are_named_are_those_there_are() -> None:
    for name in SCHEMAS:
        assert schema_of(name, ImageSettings())["name"] == name


@pytest.mark.timeout(900)
async def test_no_request_is_answered_otherwise_than_the_document_says(quick_root: Path) -> None:
    seed = int(os.environ.get("FUZZ_SEED", "20261123"))
    findings = Findings()
    async with fuzzed_daemon(quick_root) as (url, token):
        works = [
            Work(
                url=url,
                token=token,
                root=quick_root,
                count=CASES // PROCESSES,
                seed=seed,
                number=number,
                of=PROCESSES,
            )
            for number in range(PROCESSES)
        ]
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            for found in await asyncio.gather(*(loop.run_in_executor(pool, fuzz, work) for work in works)):
                findings.add(found)
    print(f"FUZZ_SEED={seed}\n{findings.table()}")
    assert not findings.wrong, "\n\n".join(f"{key}: {text}" for key, text in findings.wrong.items())
    assert findings.count >= CASES
    names = {name for name in operation_ids(json.loads(CHECKED_IN.read_text())) if name not in NOT_CALLED}
    assert names == findings.statuses.keys()
    assert names.isdisjoint(NOT_CALLED)
    assert names >= GOOD.keys()
    barren = {name for name, found in findings.statuses.items() if not any(status < 300 for status in found)}
    assert barren == CANNOT_SUCCEED.keys()
