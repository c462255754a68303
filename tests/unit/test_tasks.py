"""Joint tasks fail with the error of one of them."""

import asyncio

import pytest

from dataplane.tasks import joint_tasks


async def _fail(error: BaseException) -> None:
    raise error


async def test_the_error_comes_alone_with_its_own_cause() -> None:
    cause = OSError("the disk")

    async def fail() -> None:
        raise ValueError("the task") from cause

    with pytest.raises(ValueError, match="the task") as caught:
        async with joint_tasks() as group:
            group.create_task(fail())
    assert caught.value.__cause__ is cause
    assert not isinstance(caught.value.__context__, BaseExceptionGroup)


async def test_what_failed_at_the_same_time_is_noted() -> None:
    async def both() -> None:
        async with joint_tasks() as group:
            group.create_task(_fail(ValueError("first")))
            group.create_task(_fail(KeyError("second")))

    with pytest.raises(ValueError, match="first") as caught:
        await both()
    assert caught.value.__notes__ == ["at the same time: KeyError('second')"]


async def test_groups_within_groups_are_one() -> None:
    with pytest.raises(ValueError, match="inner"):
        async with joint_tasks() as group:
            group.create_task(_fail(BaseExceptionGroup("all", [ValueError("inner"), KeyError("other")])))


async def test_an_error_of_the_body_ends_the_tasks() -> None:
    started = asyncio.Event()
    ended = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def both() -> None:
        async with joint_tasks() as group:
            group.create_task(work())
            await started.wait()
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await both()
    assert ended.is_set()


async def test_being_cancelled_is_no_failure() -> None:
    async def all_of_it() -> None:
        async with joint_tasks() as group:
            group.create_task(asyncio.Event().wait())

    task = asyncio.create_task(all_of_it())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
