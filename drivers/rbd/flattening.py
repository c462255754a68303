"""Making a clone independent of its source: a task of Ceph's manager, which copies, and survives us."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from drivers.rbd.clibrary import CephError
from drivers.rbd.image import Image, image_id

if TYPE_CHECKING:
    from drivers.rbd.cluster import Cluster, Pool

_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0)


def require_manager(cluster: Cluster) -> None:
    """Raises `CephError` when there is no manager that takes tasks from us."""
    _tasks(cluster)


def begin_flattening(pool: Pool, name: str) -> None:
    pool.cluster.ask_manager("rbd task add flatten", image_spec=f"{pool.name}/{name}")


def flattened(pool: Pool, name: str) -> float:
    """How much of the task is done; 1 exactly when the image depends on no other. Raises `CephError` when
    nobody works at it.
    """
    for _ in range(2):  # The task may end between the two questions.
        image = Image(pool, name)
        try:
            if not image.has_parent:
                return 1
        finally:
            image.close()
        if tasks := _tasks_of(pool, name):
            return min(0.99, max(float(task.get("progress") or 0) for task in tasks))
    raise CephError(errno.EIO, f"flattening {name} (the manager has given up)")


def cancel_flattening(pool: Pool, name: str) -> bool:
    """End the task, and wait a moment for the manager to close the image. Whether there was one."""
    try:
        tasks = _tasks_of(pool, name)
    except CephError:
        return False  # No manager, so nobody flattens.
    for task in tasks:
        with suppress(CephError):  # It has just ended.
            pool.cluster.ask_manager("rbd task cancel", task_id=str(task["id"]))
    image = Image(pool, name)
    try:
        for pause_s in _PAUSES_S:
            if not image.watchers():
                break
            time.sleep(pause_s)
    finally:
        image.close()
    return bool(tasks)


def _tasks_of(pool: Pool, name: str) -> list[dict[str, Any]]:
    found = image_id(pool, name)
    return [
        task
        for task in _tasks(pool.cluster)
        if task.get("refs", {}).get("action") == "flatten" and task["refs"].get("image_id") == found
    ]


def _tasks(cluster: Cluster) -> list[dict[str, Any]]:
    tasks = cluster.ask_manager("rbd task list")
    if not isinstance(tasks, list):
        raise CephError(errno.EBADMSG, "reading the manager's list of tasks")
    return tasks
