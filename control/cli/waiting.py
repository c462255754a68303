"""Following a job to its end: through restarts of the daemon, with progress, and without holding on to it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from control.cli import output
from control.cli.client import FINAL_STATES, Json
from control.cli.exits import DetachedError, Exit, RefusedError, UnreachableError
from control.cli.report import print_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, TaskID

    from control.cli.client import Client
    from control.cli.options import Session

PATIENCE_S = 300.0
"""How long a daemon may be away before we stop waiting for it; a restart with many images to check takes
a while.
"""

_LINE_INTERVAL_S = 30.0
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0


class Display(Protocol):
    """Shows a job's progress on stderr, between entering and leaving."""

    def update(self, job: Json | None) -> None:
        """The job as it is now; None when only time has passed."""
        ...

    def notice(self, text: str) -> None: ...

    def close(self) -> None: ...


class Silence:
    """-q."""

    def update(self, job: Json | None) -> None: ...

    def notice(self, text: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """No terminal: a line when the wait begins, one every 30 s, one at the end."""

    def __init__(
        self, *, interval_s: float = _LINE_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next = 0.0
        self._job: Json | None = None

    def update(self, job: Json | None) -> None:
        first = self._job is None
        self._job = job or self._job
        if self._job is None:
            return
        over = job is not None and job.get("state") in FINAL_STATES
        if first or over or self._clock() >= self._next:
            self._next = self._clock() + self._interval_s
            output.say(progress_line(self._job))

    def notice(self, text: str) -> None:
        output.say(text)

    def close(self) -> None: ...


class Bar:
    """A terminal: a bar that is gone when the job is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[speed]}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task: TaskID = self._progress.add_task("waiting", total=None, amount="", speed="")
        self._progress.start()

    def update(self, job: Json | None) -> None:
        if job is None:
            return
        moving = job.get("progress") or {}
        size, done = moving.get("size_bytes"), moving.get("bytes_done") or 0
        amount = amount_text(size, done) if size or done else ""
        left = moving.get("eta_s")
        speed = output.rate_text(moving.get("rate_bytes_per_s")) if moving else ""
        self._progress.update(
            self._task,
            description=output.one_line(f"{job.get('kind')}: {_doing(job)}"),
            total=size,
            completed=done,
            amount=amount,
            speed=f"{speed}, {output.seconds_text(left)} left" if left is not None else speed,
        )

    def notice(self, text: str) -> None:
        from rich.text import Text

        self._progress.console.print(Text(output.clean(text)))

    def close(self) -> None:
        self._progress.stop()


def open_display(*, quiet: bool) -> Display:
    if quiet:
        return Silence()
    return Bar() if sys.stderr.isatty() else Lines()


def progress_line(job: Json) -> str:
    """`import 3f…: copying, 1.2 GiB of 2.0 GiB (60 %), 310.0 MiB/s, 3.1 s left`."""
    return f"{job.get('kind')} {job.get('id')}: {', '.join([_doing(job), *progress_parts(job)])}"


def progress_parts(job: Json) -> list[str]:
    """Bytes done, speed and time left of a job under way, as far as they are known."""
    parts: list[str] = []
    moving = job.get("progress")
    if moving and job.get("state") not in FINAL_STATES:
        size, done = moving.get("size_bytes"), moving.get("bytes_done") or 0
        if size or done:
            parts.append(amount_text(size, done))
        if moving.get("rate_bytes_per_s"):
            parts.append(output.rate_text(moving["rate_bytes_per_s"]))
        if moving.get("eta_s") is not None:
            parts.append(f"{output.seconds_text(moving['eta_s'])} left")
        if (stalled := stalled_text(job)) is not None:
            parts.append(stalled)
    return parts


def stalled_text(job: Json) -> str | None:
    """Said of a job that runs while no byte moves."""
    still_s = (job.get("progress") or {}).get("stalled_s")
    return None if still_s is None else f"no byte has moved for {output.seconds_text(still_s)}"


def amount_text(size_bytes: int | None, done_bytes: int) -> str:
    """`1.2 GiB of 2.0 GiB (60 %)`."""
    if size_bytes is None:
        return output.size_text(done_bytes)
    share = f" ({100 * done_bytes // size_bytes} %)" if size_bytes else ""
    return f"{output.size_text(done_bytes)} of {output.size_text(size_bytes)}{share}"


def _doing(job: Json) -> str:
    """What the job does now, in a word or two."""
    state = str(job.get("state"))
    if state != "running":
        return state
    return str((job.get("progress") or {}).get("phase") or job.get("phase") or state)


def changes(
    client: Client,
    job_id: str,
    *,
    patience_s: float,
    notice: Callable[[str], None],
    accepted: bool,
) -> Iterator[Json | None]:
    """The job whenever it changes, the last time in a final state; None while time passes.

    When the daemon goes away it is tried again for `patience_s`, then `UnreachableError`. Before the
    daemon has answered once, it is raised at once, unless the job is known to be `accepted`.
    """
    lost_at: float | None = None
    wait_s = _FIRST_WAIT_S
    while True:
        cause: UnreachableError | RefusedError | None = None
        began = time.monotonic()
        try:
            for job in client.events(job_id):
                if job is not None:
                    if lost_at is not None:
                        notice("The daemon is back.")
                    lost_at, accepted = None, True
                yield job
                if job is not None and job.get("state") in FINAL_STATES:
                    return
        except (UnreachableError, RefusedError) as error:
            if not accepted or not _may_pass(error):
                raise
            cause = error
        now = time.monotonic()
        if lost_at is None:
            lost_at = now
            wait_s = _FIRST_WAIT_S if now - began > _LONGEST_WAIT_S else wait_s
            notice(
                f"The daemon is away; its job is safe. Trying again for {output.seconds_text(patience_s)}."
            )
        if now - lost_at >= patience_s:
            raise UnreachableError(
                f"The daemon is away for {output.seconds_text(patience_s)}; job {job_id} goes on with it.",
                hint=f"systemctl status glissade, then: glissade job watch {job_id}",
            ) from cause
        yield None
        time.sleep(min(wait_s, max(0.0, lost_at + patience_s - now)))
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)


def _may_pass(error: UnreachableError | RefusedError) -> bool:
    """Whether a daemon that starts or stops answers like this. 500 is not among them: that would not mend
    itself.
    """
    return isinstance(error, UnreachableError) or error.status in (429, 502, 503, 504)


def wait_for(session: Session, job_id: str, *, patience_s: float = PATIENCE_S, accepted: bool = True) -> Json:
    """Follow the job, showing progress; returns it in its final state. Ctrl-C raises `DetachedError`: the
    job goes on.
    """
    display = open_display(quiet=session.quiet)
    last: Json | None = None
    try:
        for job in changes(
            session.client, job_id, patience_s=patience_s, notice=display.notice, accepted=accepted
        ):
            last = job or last
            display.update(job)
    except KeyboardInterrupt:
        raise DetachedError(
            f"Detached: job {job_id} goes on without us.",
            hint=f"Watch it: glissade job watch {job_id}    Stop it: glissade job cancel {job_id}",
        ) from None
    finally:
        display.close()
    return last or {}


def conclude(
    session: Session, job: Json, *, wanted: frozenset[str] = frozenset({"succeeded", "ignored"})
) -> Exit:
    """Print how a job ended, and say so in the exit code."""
    if session.as_json:
        output.print_json(job)
    else:
        print_report(job)
    return Exit.OK if job.get("state") in wanted else Exit.NOT_HELD


def submit(session: Session, request: Json, *, wait: bool) -> Exit:
    """Hand in a job; wait for it, or print its id."""
    job = session.client.post("/v1/jobs", {**request, **session.job_fields}, key=session.idempotency_key)
    job_id = str(job.get("id"))
    if wait:
        return conclude(session, wait_for(session, job_id))
    if session.as_json:
        output.print_json(job)
    else:
        output.print_line(job_id)
        session.say(f"Accepted. Follow it: glissade job watch {job_id}")
    return Exit.OK


def submit_batch(session: Session, request: Json, *, wait: bool) -> Exit:
    """Hand in a batch; wait for all its jobs, or print its id."""
    batch = session.client.post("/v1/batches", request, key=session.idempotency_key)
    batch_id = str(batch.get("id"))
    if not wait:
        if session.as_json:
            output.print_json(batch)
        else:
            output.print_line(batch_id)
            session.say(f"{len(batch['jobs'])} jobs accepted. See them: glissade job list --batch {batch_id}")
        return Exit.OK
    ended = [wait_for(session, str(job["id"])) for job in batch["jobs"]]
    if session.as_json:
        output.print_json({"id": batch_id, "jobs": ended})
    else:
        for job in ended:
            print_report(job)
    done = all(job.get("state") in ("succeeded", "ignored") for job in ended)
    return Exit.OK if done else Exit.NOT_HELD
