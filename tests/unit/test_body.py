"""Bodies that do not come as they should."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from control.api.body import read_body
from control.api.errors import InvalidRequestError


async def test_a_body_that_cannot_be_parsed_is_the_clients_mistake() -> None:
    """By aiohttp's reader in Python; the one in C waits for what never comes."""
    protocol = BaseProtocol(asyncio.get_running_loop())
    payload = StreamReader(protocol, 1, loop=asyncio.get_running_loop())
    payload.set_exception(web.RequestPayloadError("zz"))
    with pytest.raises(InvalidRequestError, match="broke off"):
        await read_body(make_mocked_request("POST", "/v2/images", payload=payload))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity, br", "X" * 500])
async def test_a_compressed_body_is_not_read(coding: str) -> None:
    request = make_mocked_request("POST", "/v2/images", {"Content-Encoding": coding})
    with pytest.raises(InvalidRequestError, match="must not be compressed") as caught:
        await read_body(request)
    assert len(caught.value.message) < 200
