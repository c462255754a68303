"""The operator's prohibitions."""

from __future__ import annotations

import pytest

from dataplane.errors import NotFoundError, ReadOnlyStoreError
from dataplane.store import Driver, WriteOptions
from drivers.memory import MemoryConfig, MemoryDriver
from drivers.options import StoreOptions
from drivers.wrap.restricted import restricted
from tests.conformance.images import read_image, write_image
from tests.fakes.faulty import FaultyDriver


@pytest.fixture
async def faulty() -> FaultyDriver:
    driver = MemoryDriver("memory", MemoryConfig(), StoreOptions())
    await write_image(driver, "image", b"data")
    return FaultyDriver(driver)


async def test_a_read_only_store_is_read_and_not_changed(faulty: FaultyDriver) -> None:
    store = restricted(faulty, read_only=True, allow_delete=True)
    assert isinstance(store, Driver)
    capabilities = store.capabilities
    assert (capabilities.writable, capabilities.deletable, capabilities.copy_from) == (False, False, None)
    assert capabilities.origin is not None
    assert (await read_image(store, "image")).data == b"data"
    with pytest.raises(ReadOnlyStoreError, match="read_only = true"):
        async with store.open_write("new"):
            pass
    with pytest.raises(ReadOnlyStoreError, match="read_only = true"):
        await store.delete("image")
    with pytest.raises(ReadOnlyStoreError, match="read_only = true"):
        await store.clear_attempt("image", "job-1", keep_object=False)
    assert not faulty.calls.keys() & {"open_write", "delete", "clear_attempt"}


async def test_without_allow_delete_nothing_is_deleted_but_own_remains_are(faulty: FaultyDriver) -> None:
    store = restricted(faulty, read_only=False, allow_delete=False)
    assert (store.capabilities.writable, store.capabilities.deletable) == (True, False)
    async with store.open_write("new", WriteOptions(attempt="job-1")) as session:
        await session.commit()
    with pytest.raises(ReadOnlyStoreError, match="allow_delete = false"):
        await store.delete("new")
    await store.stat("new")
    assert await store.clear_attempt("new", "job-1", keep_object=False)
    with pytest.raises(NotFoundError):
        await store.stat("new")


def test_without_prohibitions_there_is_no_wrapper(faulty: FaultyDriver) -> None:
    assert restricted(faulty, read_only=False, allow_delete=True) is faulty
