"""What all tests share: leaving out what the machine cannot do, and file systems mounted once per session."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.services import loopfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test SERVICES=none` leaves out everything that needs foreign programs, servers or mounts."""
    if os.environ.get("SERVICES", "all") != "none":
        return
    for item in items:
        for marker in ("loopfs", "service"):
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=f"SERVICES=none leaves out {marker}"))


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Mount points by kind ("ext4", "xfs", "btrfs", "tmpfs"), each mounted when first asked for and shared by
    the whole session: use a directory of your own in it. Skips, by name, what this machine cannot mount.
    """
    points: dict[str, Path] = {}
    with ExitStack() as stack:

        def get(kind: str) -> Path:
            skip_unless_mountable(kind)
            if kind not in points:
                place = tmp_path_factory.mktemp(kind)
                points[kind] = stack.enter_context(loopfs.mounted(kind, place)).mount_point
            return points[kind]

        yield get


def skip_unless_mountable(kind: str) -> None:
    reason = loopfs.unavailable(kind)
    if reason is not None:
        pytest.skip(f"no {kind} here: {reason}")
