"""The harness on trial: the daemon is given one bug after the other, and a campaign has to find each.

A harness that was never seen red proves nothing. Bugs are planted from outside, in the daemon's process
(`tests.chaos.nursery`); no file of the product knows of them.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dataplane.failpoints import Action, Arrow
from tests.chaos import arrows, corruptions, fences, kill9, outages, powercuts
from tests.chaos.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.grounds import Order


def _plant(place: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put what `make` makes of it in the place of something."""
    setattr(place, name, make(getattr(place, name)))


def _skip_fsync() -> None:
    """Files are published without having been made durable."""
    _fsync_only(stat.S_ISDIR)


def _skip_directory_fsync() -> None:
    """Names are taken for durable that are not."""
    _fsync_only(stat.S_ISREG)


def _fsync_only(wanted: Callable[[int], bool]) -> None:
    def careless(fsync: Any) -> Any:
        return lambda fd: fsync(fd) if wanted(os.fstat(fd).st_mode) else None

    _plant(os, "fsync", careless)


def _skip_epoch_check() -> None:
    """Whoever writes about a job is taken for its owner."""
    from sqlalchemy import select

    from control.catalog.tables import jobs
    from control.jobs.queue import JobQueue

    def careless(write: Any) -> Any:
        async def of_whoever(queue: Any, tx: Any, claim: Any, **values: Any) -> Any:
            of_job = select(jobs.c.epoch, jobs.c.owner).where(jobs.c.id == claim.job_id)
            row = (await tx.execute(of_job)).one()
            return await write(queue, tx, replace(claim, epoch=row.epoch, owner=row.owner), **values)

        return of_whoever

    _plant(JobQueue, "record", careless)
    _plant(JobQueue, "pass_no_return", careless)


def _delete_before_publish() -> None:
    """A move deletes its source as soon as the copy is made."""
    from control.jobs.recipes import moving
    from dataplane.failpoints import fail_point

    def hasty(transfer: Any) -> Any:
        async def and_delete(source: Any, key: str, *arguments: Any, **options: Any) -> Any:
            done = await transfer(source, key, *arguments, **options)
            await source.delete(key)
            fail_point(Arrow.DELETED)
            return done

        return and_delete

    _plant(moving, "transfer", hasty)


def _skip_identity_check() -> None:
    """Whatever has the name is deleted."""
    from drivers.filesystem.driver import FileDriver

    _plant(FileDriver, "_delete", lambda delete: lambda driver, key, _: delete(driver, key, None))


def _publish_before_verify() -> None:
    """A copy is published as it is."""
    from control.jobs.recipes import copying, moving
    from dataplane.terms import VerifyMode

    for recipe in (moving, copying):
        _plant(recipe, "transfer", lambda transfer: _always(transfer, verify=VerifyMode.INLINE))


def _clear_what_others_made() -> None:
    """Clearing up after an attempt takes whatever has the image's name."""
    from drivers.filesystem.driver import FileDriver

    def careless(clear: Any) -> Any:
        def and_more(driver: FileDriver, key: str, name: str, *, keep_object: bool) -> Any:
            made = clear(driver, key, name, keep_object=keep_object)
            for root in driver._directories.roots:
                if not keep_object and os.path.exists(root.file_path(key)):
                    os.unlink(root.file_path(key))
            return made

        return and_more

    _plant(FileDriver, "_clear_attempt", careless)


def _acknowledge_before_commit() -> None:
    """SQLite does not wait for the disk, though it says so when asked."""

    class Cursor(sqlite3.Cursor):
        def execute(self, statement: str, *arguments: Any) -> Any:
            asked = statement.replace("synchronous=FULL", "synchronous=OFF")
            return super().execute("SELECT 2" if asked == "PRAGMA synchronous" else asked, *arguments)

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = None) -> Any:
            return super().cursor(Cursor)

    _plant(sqlite3, "connect", lambda connect: partial(connect, factory=Connection))


def _ignore_short_writes() -> None:
    """The kernel takes half, and nobody looks at how much it was."""
    from drivers.filesystem.session import FileWriteSession

    def careless(write_some: Any) -> Any:
        def half(session: FileWriteSession, view: memoryview) -> int:
            taken = write_some(session, view[: max(1, len(view) // 2)])
            session._at += len(view) - taken
            session._data_bytes = session._at
            return len(view)

        return half

    _plant(FileWriteSession, "_write_some", careless)


def _trust_cached_read_back() -> None:
    """What is read back is what the kernel remembers."""
    from dataplane import transfer

    _plant(transfer, "measure", lambda measure: _always(measure, bypass_cache=False))


def _forget_leftovers() -> None:
    """What attempts left in the stores is never cleared."""
    from control.jobs import cleaning, reaper

    async def nothing(*_: Any, **__: Any) -> None:
        return None

    for place in (cleaning, reaper):
        _plant(place, "clear_artefact", lambda _: nothing)


def _forget_keys() -> None:
    """Whoever sends a request again is taken for somebody who wants the same once more."""
    from control.jobs.queue import JobQueue

    def careless(add: Any) -> Any:
        return lambda queue, tx, new: add(queue, tx, replace(new, idempotency_key=None))

    _plant(JobQueue, "add", careless)


def _claim_what_is_held() -> None:
    """Nobody looks whether a job is to come after others, or later."""
    from control.catalog.tables import jobs
    from control.jobs import choosing, queue

    _plant(choosing, "IN_LINE", lambda _: (choosing.QUEUED, jobs.c.waiting_for.is_(None)))
    _plant(queue, "WAITING", lambda _: choosing._waiting())


def _count_the_lost() -> None:
    """Jobs that the node has lost still take their room in the stores."""
    from sqlalchemy import false

    from control.jobs import choosing, claiming

    def careless(count: Any) -> Any:
        async def with_the_lost(*arguments: Any) -> Any:
            known, choosing.lease_is_over = choosing.lease_is_over, false
            try:
                return await count(*arguments)
            finally:
                choosing.lease_is_over = known

        return with_the_lost

    _plant(claiming, "running_by_store", careless)


def _always(function: Any, **decided: Any) -> Any:
    """The function, with these options whatever its callers say."""
    return lambda *arguments, **options: function(*arguments, **{**options, **decided})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """`plant` puts it into this process; `found_by` has to find it within `count` faults."""

    plant: Callable[[], None]
    found_by: Callable[[Order], Result]
    count: int


_first_arrow = partial(arrows.run_points, chosen=[("move", Arrow.CLAIMED, Action.KILL)])
_deleted = partial(arrows.run_points, chosen=[("move", Arrow.DELETED, Action.KILL)])

BUGS = {
    # One for each campaign that finds bugs quickly, the quickest first: CI plants only these.
    "forget-leftovers": Bug(plant=_forget_leftovers, found_by=_first_arrow, count=1),
    "trust-cached-read-back": Bug(plant=_trust_cached_read_back, found_by=corruptions.run, count=20),
    "clear-what-others-made": Bug(plant=_clear_what_others_made, found_by=fences.run, count=3),
    "acknowledge-before-commit": Bug(plant=_acknowledge_before_commit, found_by=powercuts.run, count=20),
    "forget-keys": Bug(plant=_forget_keys, found_by=kill9.run, count=20),
    "publish-before-verify": Bug(plant=_publish_before_verify, found_by=corruptions.run, count=10),
    "skip-fsync": Bug(plant=_skip_fsync, found_by=powercuts.run, count=40),
    "skip-directory-fsync": Bug(plant=_skip_directory_fsync, found_by=powercuts.run, count=40),
    "skip-epoch-check": Bug(plant=_skip_epoch_check, found_by=fences.run, count=3),
    "skip-identity-check": Bug(plant=_skip_identity_check, found_by=fences.run, count=3),
    "delete-before-publish": Bug(plant=_delete_before_publish, found_by=_deleted, count=1),
    "claim-what-is-held": Bug(plant=_claim_what_is_held, found_by=kill9.run, count=20),
    "count-the-lost": Bug(plant=_count_the_lost, found_by=outages.run, count=12),
    "ignore-short-writes": Bug(plant=_ignore_short_writes, found_by=_first_arrow, count=1),
}


NEEDS_DISKS = frozenset(
    name for name, bug in BUGS.items() if bug.found_by is powercuts.run or name == "trust-cached-read-back"
)
"""What shows only on file systems of our own."""


def unavailable() -> str | None:
    """Why not all of them can be found here; None when they can be."""
    return powercuts.unavailable()


def run(order: Order) -> Result:
    """The first `count` of them. A violation here is a bug that nobody noticed."""
    started = time.monotonic()
    unseen: list[str] = []
    seen: dict[str, int] = {}
    for name in list(BUGS)[: order.count]:
        result = find(name, order)
        if result.found:
            seen[name] = result.count
        else:
            unseen.append(f"{name}: {result.campaign} did not find it in {result.count}")
        if order.is_over:
            break
    return Result(
        campaign="bugs",
        count=len(seen) + len(unseen),
        seconds=time.monotonic() - started,
        seed=order.seed,
        found=tuple(unseen),
        hit={"found_after": seen},
    )


def find(name: str, order: Order) -> Result:
    """What the campaign that has to find this bug says about a daemon that has it."""
    bug = BUGS[name]
    return bug.found_by(replace(order, count=bug.count, bug=name, ceph=None))
