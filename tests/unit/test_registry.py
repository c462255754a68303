"""The store types, and what comes out of `build_store`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING

import pytest

from dataplane.errors import ReadOnlyStoreError, UnavailableError
from dataplane.store import Driver, Source
from drivers.filesystem.config import Directory, FileConfig
from drivers.http.config import HttpConfig
from drivers.memory import MemoryConfig
from drivers.options import RetryOptions, StoreOptions
from drivers.registry import (
    STORE_TYPES,
    MissingExtraError,
    StoreType,
    UnknownStoreTypeError,
    build_store,
    store_type,
    wrapped,
)
from tests.conformance.images import read_image, write_image
from tests.conformance.stores import fresh_memory
from tests.fakes.faulty import Fault, FaultyDriver

if TYPE_CHECKING:
    from pathlib import Path

    from dataplane.errors import StoreError


def test_the_spines_types_are_there() -> None:
    assert {"file", "http", "memory", "rbd", "s3", "swift"} <= set(STORE_TYPES)


@pytest.mark.parametrize("kind", STORE_TYPES.values(), ids=STORE_TYPES)
def test_a_types_classes_can_be_loaded(kind: StoreType) -> None:
    assert is_dataclass(kind.config_class())
    try:
        driver_class = kind.driver_class()
    except MissingExtraError as error:
        if kind.system_package is None:  # Extras are in every environment of ours.
            raise
        pytest.skip(str(error))
    assert callable(driver_class)


def test_importing_the_registry_imports_no_driver() -> None:
    code = (
        "import sys, drivers.registry\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('aiohttp', 'tenacity', 'drivers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["drivers", "drivers.registry"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("flie", "Did you mean 'file'?"),
        ("HTTP", "Did you mean 'http'?"),
        ("tape", f"Known types: {', '.join(sorted(STORE_TYPES))}."),
    ],
)
def test_an_unknown_type_gets_advice(name: str, advice: str) -> None:
    with pytest.raises(UnknownStoreTypeError) as caught:
        store_type(name)
    assert caught.value.hint == advice
    with pytest.raises(UnknownStoreTypeError):
        build_store("store", name, MemoryConfig(), StoreOptions())


def test_a_type_whose_libraries_are_missing_names_its_extra() -> None:
    kind = StoreType(name="tape", config="no_such_module.config:Config", driver="", extra="tape")
    with pytest.raises(MissingExtraError, match=r"glissade\[tape\]"):
        kind.config_class()
    with pytest.raises(ModuleNotFoundError):  # Without an extra it is our own mistake.
        replace(kind, extra=None).config_class()


async def test_a_file_store_is_a_driver_that_works(tmp_path: Path) -> None:
    config = FileConfig(directories=(Directory(path=str(tmp_path)),))
    store = build_store("fast", "file", config, StoreOptions())
    assert isinstance(store, Driver)
    assert store.name == "fast"
    await store.probe()
    await write_image(store, "image", b"data")
    assert (await read_image(store, "image")).data == b"data"
    await store.aclose()


async def test_an_http_store_is_a_source_only() -> None:
    store = build_store("web", "http", HttpConfig(), StoreOptions())
    assert isinstance(store, Source)
    assert not isinstance(store, Driver)
    await store.aclose()


def test_a_dead_store_is_built_all_the_same() -> None:
    build_store("fast", "file", FileConfig(directories=(Directory(path="/nonexistent"),)), StoreOptions())


def test_the_config_of_another_type_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="HttpConfig"):
        build_store("fast", "file", HttpConfig(), StoreOptions())


async def test_options_forbid() -> None:
    read_only = build_store("store", "memory", MemoryConfig(), StoreOptions(read_only=True))
    assert isinstance(read_only, Driver)
    assert not read_only.capabilities.writable
    with pytest.raises(ReadOnlyStoreError, match="read_only = true"):
        async with read_only.open_write("image"):
            pass
    keeping = build_store("store", "memory", MemoryConfig(), StoreOptions(allow_delete=False))
    assert isinstance(keeping, Driver)
    await write_image(keeping, "image", b"data")
    assert not keeping.capabilities.deletable
    with pytest.raises(ReadOnlyStoreError, match="allow_delete = false"):
        await keeping.delete("image")


async def test_the_wrappers_are_in_order() -> None:
    """Each try is traced, and a back-off between two tries holds no slot."""
    tries: list[str] = []

    class Observer:
        def operation(self, *, store: str, operation: str, seconds: float, error: StoreError | None) -> None:
            tries.append(operation)

        def bytes_moved(self, *, store: str, direction: str, size_bytes: int) -> None:
            pass

    async with fresh_memory() as fresh:
        await write_image(fresh.driver, "image", b"data")
        faults = Fault(call="stat", error=UnavailableError("no", store="memory"), times=2)
        options = StoreOptions(concurrency=1, retry=RetryOptions(first_wait_s=0.001, longest_wait_s=0.001))
        store = wrapped(FaultyDriver(fresh.driver, faults), options, Observer())
        await store.stat("image")
        assert tries == ["stat", "stat", "stat"]
