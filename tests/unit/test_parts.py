"""Part buffers: bounded, never waited for in a circle; parts: whole, in order, and nothing stays in use."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from drivers.parts import Acknowledged, Part, PartBuffers, PartUploads, SessionBuffers, growing

if TYPE_CHECKING:
    from collections.abc import Callable

BUFFER = 4096


def pool_of(count: int) -> PartBuffers:
    return PartBuffers(budget_bytes=count * BUFFER + 1, buffer_bytes=BUFFER)


class Sent:
    """Takes parts as a store would."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self.offsets: dict[int, int] = {}
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: dict[int, Exception] = {}

    async def send(self, part: Part) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if part.number in self.failing:
                raise self.failing[part.number]
            self.parts[part.number] = b"".join(part.pieces)
            self.offsets[part.number] = part.offset_bytes
        finally:
            self.at_once -= 1

    def uploads(
        self,
        buffers: SessionBuffers,
        *,
        target: Callable[[int], int] = lambda _: BUFFER,
        in_flight: int = 4,
        first_number: int = 1,
        first_offset_bytes: int = 0,
    ) -> PartUploads:
        return PartUploads(
            buffers,
            send=self.send,
            target_bytes=target,
            in_flight=in_flight,
            first_number=first_number,
            first_offset_bytes=first_offset_bytes,
        )

    @property
    def data(self) -> bytes:
        return b"".join(self.parts[number] for number in sorted(self.parts))


def test_a_budget_without_a_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold a buffer"):
        PartBuffers(budget_bytes=BUFFER - 1, buffer_bytes=BUFFER)


async def test_every_session_has_one_buffer_and_shares_the_others() -> None:
    pool = pool_of(3)
    async with pool.session() as one, pool.session() as other:
        first, second = one.take(), one.take()
        assert first is not None
        assert second is not None
        assert one.take() is None
        own = other.take()
        assert own is not None
        assert other.take() is None
        one.give_back([first, second])
        assert pool.free_buffers == 1  # One stays with its session.
        more = other.take()
        assert more is not None
        other.give_back([own, more])
    assert pool.free_buffers == 3


async def test_a_session_waits_in_line_for_its_buffer() -> None:
    pool = pool_of(1)
    order: list[int] = []

    async def use(number: int) -> None:
        async with pool.session() as mine:
            order.append(number)
            buffer = mine.take()
            assert buffer is not None
            await asyncio.sleep(0)
            mine.give_back([buffer])

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(use(number))
    assert order == list(range(5))
    assert pool.free_buffers == 1


async def test_what_others_wait_for_is_not_taken_as_a_further_buffer() -> None:
    pool = pool_of(2)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(pool.session())
        first, second = one.take(), one.take()
        assert first is not None
        assert second is not None
        waiting = asyncio.create_task(stack.enter_async_context(pool.session()))
        await asyncio.sleep(0)
        one.give_back([first])
        own = (await waiting).take()
        assert own is first
        assert one.take() is None
        with pytest.raises(RuntimeError, match="still in use"):
            one.all_back()
        one.give_back([second])
        assert one.take() is second  # What it waited for at its beginning stays its own.
        one.give_back([second])
        (await waiting).give_back([own])


async def test_a_session_that_gives_up_waiting_costs_nothing() -> None:
    pool = pool_of(1)
    async with pool.session():
        waiting = [asyncio.create_task(pool.session().__aenter__()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
    # The first one was served when the session ended; it gives up before it could run.
    waiting[0].cancel()
    waiting[2].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    async with asyncio.timeout(30), pool.session() as again:
        buffer = again.take()
        assert buffer is not None
        again.give_back([buffer])


async def test_memory_goes_when_the_last_session_does() -> None:
    pool = pool_of(4)
    async with pool.session() as mine:
        taken = [buffer for _ in range(4) if (buffer := mine.take()) is not None]
        assert len(taken) == 4
        mine.give_back(taken)
        assert pool._mapped == 4
    assert pool._mapped == 0
    assert pool.free_buffers == 4


@pytest.mark.parametrize("buffers", [1, 2, 5])
@pytest.mark.parametrize("target", [100, BUFFER, BUFFER + 1, 3 * BUFFER])
@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 10 * BUFFER + 7])
async def test_every_byte_is_sent_in_its_place(size: int, target: int, buffers: int) -> None:
    pool, sent = pool_of(buffers), Sent()
    data = random.Random(size).randbytes(size)
    async with pool.session() as mine:
        uploads = sent.uploads(mine, target=lambda _: target, in_flight=3)
        for at in range(0, size, 1000):
            chunk = bytearray(data[at : at + 1000])
            await uploads.write(memoryview(chunk))
            chunk[:] = b"\xff" * len(chunk)
        assert uploads.size_bytes == size
        uploads.send_current()
        await uploads.settle()
        assert uploads.acknowledged() == Acknowledged(last_number=len(sent.parts), size_bytes=size)
        await uploads.aclose()
    assert sent.data == data
    assert [sent.offsets[number] for number in sorted(sent.parts)] == [
        sum(len(sent.parts[before]) for before in range(1, number)) for number in sorted(sent.parts)
    ]
    assert all(len(part) <= target for part in sent.parts.values())
    assert all(len(sent.parts[number]) >= min(target, BUFFER) for number in range(1, len(sent.parts))), (
        "only the last part may be smaller than a buffer"
    )
    assert sent.most_at_once <= min(3, buffers)
    assert pool.free_buffers == buffers


async def test_parts_are_as_large_as_wished_while_there_is_room() -> None:
    pool, sent = pool_of(4), Sent()
    async with pool.session() as mine:
        uploads = sent.uploads(mine, target=lambda _: 2 * BUFFER)
        await uploads.write(memoryview(bytes(4 * BUFFER)))
        await uploads.settle()
        assert [len(part) for part in sent.parts.values()] == [2 * BUFFER, 2 * BUFFER]


async def test_sizes_grow() -> None:
    target = growing(10, 80, every=2)
    assert [target(number) for number in range(1, 11)] == [10, 10, 20, 20, 40, 40, 80, 80, 80, 80]
    assert target(10_000_000) == 80


async def test_a_writer_waits_for_its_own_parts_only() -> None:
    pool, sent = pool_of(2), Sent()
    sent.gate.clear()
    async with pool.session() as one, pool.session() as other:
        stuck, lively = sent.uploads(one), Sent().uploads(other)
        writing = asyncio.create_task(stuck.write(memoryview(bytes(3 * BUFFER))))
        await asyncio.sleep(0.01)
        assert not writing.done()
        async with asyncio.timeout(30):
            await lively.write(memoryview(bytes(5 * BUFFER)))
            await lively.settle()
        sent.gate.set()
        await writing
        await stuck.settle()
        assert stuck.acknowledged().size_bytes == 3 * BUFFER
        await stuck.aclose()
        await lively.aclose()


async def test_a_part_that_fails_ends_the_writing() -> None:
    pool, sent = pool_of(4), Sent()
    sent.failing[2] = OSError("the second part")
    async with pool.session() as mine:
        uploads = sent.uploads(mine)
        await uploads.write(memoryview(bytes(3 * BUFFER)))
        with pytest.raises(OSError, match="the second part"):
            await uploads.settle()
        with pytest.raises(OSError, match="the second part"):
            await uploads.write(memoryview(b"x"))
        assert uploads.acknowledged() == Acknowledged(last_number=1, size_bytes=BUFFER)
        await uploads.aclose()
    assert pool.free_buffers == 4


async def test_giving_up_waits_for_what_is_on_its_way() -> None:
    pool, sent = pool_of(4), Sent()
    sent.gate.clear()
    async with pool.session() as mine:
        uploads = sent.uploads(mine)
        await uploads.write(memoryview(bytes(2 * BUFFER + 5)))
        await asyncio.sleep(0)
        assert sent.at_once == 2
        await uploads.aclose()
        assert sent.at_once == 0
        assert sent.parts == {}
        await uploads.aclose()
    assert pool.free_buffers == 4


async def test_an_upload_that_is_resumed_goes_on_with_its_numbers() -> None:
    pool, sent = pool_of(2), Sent()
    async with pool.session() as mine:
        uploads = sent.uploads(mine, first_number=4, first_offset_bytes=12345)
        await uploads.write(memoryview(bytes(BUFFER + 1)))
        uploads.send_current()
        await uploads.settle()
        assert sorted(sent.parts) == [4, 5]
        assert sent.offsets == {4: 12345, 5: 12345 + BUFFER}
        assert uploads.size_bytes == 12345 + BUFFER + 1
        assert uploads.acknowledged() == Acknowledged(last_number=5, size_bytes=uploads.size_bytes)
        whole = Acknowledged(last_number=4, size_bytes=12345 + BUFFER)
        assert uploads.acknowledged(within_bytes=12345 + BUFFER) == whole
        assert uploads.acknowledged(within_bytes=uploads.size_bytes - 1) == whole
        assert uploads.acknowledged(within_bytes=12345) == Acknowledged(last_number=3, size_bytes=12345)
        await uploads.aclose()


async def test_a_part_that_must_be_large_has_buffers_of_its_own() -> None:
    pool, sent = pool_of(4), Sent()
    async with pool.session() as other, pool.session(3) as mine:
        taken = other.take()
        assert taken is not None
        assert other.take() is None
        uploads = sent.uploads(mine, target=lambda _: 3 * BUFFER)
        data = random.Random(1).randbytes(10 * BUFFER + 9)
        async with asyncio.timeout(30):
            await uploads.write(memoryview(data))
            uploads.send_current()
            await uploads.settle()
        assert [len(sent.parts[number]) for number in (1, 2, 3, 4)] == [3 * BUFFER] * 3 + [BUFFER + 9]
        assert sent.data == data
        other.give_back([taken])
        await uploads.aclose()
    assert pool.free_buffers == 4
    with pytest.raises(ValueError, match="cannot belong to one session"):
        async with pool.session(5):
            pytest.fail("there are only four")


async def test_who_waits_for_many_is_not_overtaken() -> None:
    pool = pool_of(2)
    order: list[str] = []

    async def use(name: str, own: int) -> None:
        async with pool.session(own):
            order.append(name)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group, pool.session():
        group.create_task(use("many", 2))
        await asyncio.sleep(0)
        group.create_task(use("one", 1))
        await asyncio.sleep(0.01)
        assert order == []
    assert order == ["many", "one"]
