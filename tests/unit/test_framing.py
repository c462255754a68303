"""Where a body's bytes lie in what comes, however it comes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.api.framing import Chunked, Counted, Framing, FramingError


def stripped(framing: Framing, wire: bytes, sizes: list[int]) -> bytes:
    """What is found of it when it comes in pieces of these sizes, and then all at once."""
    found, at = b"", 0
    for size in [*sizes, len(wire)]:
        came = memoryview(bytearray(wire[at : at + size]))
        at += len(came)
        found += bytes(came[: framing.strip(came)])
    return found


def in_chunks(data: bytes, sizes: list[int], *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    wire, at = b"", 0
    for size in [*sizes, len(data)]:
        if chunk := data[at : at + size]:
            wire += b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk)
        at += len(chunk)
    return wire + b"0\r\n" + trailers + b"\r\n"


sizes = st.lists(st.integers(1, 300), max_size=40)


@given(
    data=st.binary(max_size=3000),
    chunks=sizes,
    pieces=sizes,
    extension=st.sampled_from([b"", b" ", b";a=b", b'; name="x y"', b";" + b"e" * 500]),
    trailers=st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n" * 10]),
    more=st.sampled_from([b"", b"GET / HTTP/1.1\r\n\r\n"]),
)
def test_a_body_in_chunks_is_found_however_it_comes(
    data: bytes, chunks: list[int], pieces: list[int], extension: bytes, trailers: bytes, more: bytes
) -> None:
    framing = Chunked()
    wire = in_chunks(data, chunks, extension=extension, trailers=trailers)
    assert stripped(framing, wire + more, pieces) == data
    assert framing.is_ended


@given(data=st.binary(max_size=3000), chunks=sizes, pieces=sizes, cut=st.integers(1, 100))
def test_a_body_in_chunks_that_is_cut_off_has_not_ended(
    data: bytes, chunks: list[int], pieces: list[int], cut: int
) -> None:
    framing = Chunked()
    wire = in_chunks(data, chunks)
    assert data.startswith(stripped(framing, wire[:-cut], pieces))
    assert not framing.is_ended


@given(data=st.binary(max_size=3000), pieces=sizes, more=st.binary(max_size=50))
def test_a_body_of_known_length_ends_there(data: bytes, pieces: list[int], more: bytes) -> None:
    framing = Counted(len(data))
    assert stripped(framing, data + more, pieces) == data
    assert framing.is_ended


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (b"zz\r\n", "does not tell its size"),
        (b"\r\n", "does not tell its size"),
        (b"-1\r\n", "does not tell its size"),
        (b"0x5\r\nhello\r\n", "does not tell its size"),
        (b"5 6\r\nhello\r\n", "does not tell its size"),
        (b"1" * 16 + b"\r\n", "does not tell its size"),
        (b"5;a\x00b\r\nhello\r\n", "does not tell its size"),
        (b"5\nhello\r\n", "does not end as it has to"),
        (b"5\r\nhello\n", "does not end as it has to"),
        (b"5\r\nhello!\r\n", "longer than it told"),
        (b"5;" + b"a" * 5000, "too long"),
        (b"0\r\n" + b"A: b\r\n" * 100, "too many trailers"),
    ],
)
def test_what_is_no_body_in_chunks_is_refused(wire: bytes, why: str) -> None:
    for most in (1, 7, 10_000):
        with pytest.raises(FramingError, match=why):
            stripped(Chunked(), wire, [random.Random(most).randint(1, most) for _ in range(10_000)])
