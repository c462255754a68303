"""The demo's story: import into two stores in one read, verify, move to a third, stop, and look at what is
there."""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import os
import shutil
import socket
import time
import urllib.parse
import urllib.request
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from control.demo.disk_image import MIB, build_disk_image, find_mke2fs
from control.sandbox import Json, Sandbox, SandboxError, processes_in_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGE_BYTES = 256 * MIB
STORES = ("fast", "slow", "archive")
ALGORITHMS = ("md5", "sha512")


class DemoFailedError(Exception):
    """Something did not hold; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """The image as it is at its source, read by nobody but this module."""

    where: str
    what: str
    size_bytes: int
    digests: dict[str, str]


@dataclass(slots=True)
class Checks:
    """What was claimed and looked at: every failure is kept, so that one run tells all of them."""

    console: Console
    failures: list[str] = field(default_factory=list)

    def that(self, holds: bool, claim: str, *, found: object = "") -> None:
        """Note whether the claim holds; `found` is shown when it does not."""
        if holds:
            self.console.print(f"  [green]ok[/]  {claim}", soft_wrap=True)
        else:
            self.failures.append(claim)
            self.console.print(f"  [red]NO[/]  {claim}: {found}", soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """Run the demo; 0 when everything held."""
    arguments = _parse(argv)
    console = Console(highlight=False)
    directory = Path(arguments.directory).absolute()
    try:
        _clear(directory)
        failures = _tell(directory, arguments.image, console)
    except (DemoFailedError, SandboxError, OSError) as error:
        failures = [str(error)]
    except KeyboardInterrupt:
        console.print("\nInterrupted; the daemon has been stopped.")
        return 130
    if failures:
        log = directory / "daemon.log"
        if log.exists():
            console.rule("the end of the daemon's log")
            console.print(
                "\n".join(log.read_text(errors="replace").splitlines()[-30:]), markup=False, soft_wrap=True
            )
        console.rule("[red]did not hold")
        for failure in failures:
            console.print(f"- {failure}", markup=False, soft_wrap=True)
        return 1
    console.print(f"\n[bold green]Everything held.[/] What is left to look at is in {_short(directory)}.")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--image", default="", help="path or http(s) URL of an image (default: one is built)")
    parser.add_argument("--directory", default="var/demo", help="emptied first (default: %(default)s)")
    return parser.parse_args(argv)


def _clear(directory: Path) -> None:
    """Empty the demo's directory: only one that an earlier demo made."""
    marker = directory / ".glissade-demo"
    if directory.exists() and any(directory.iterdir()) and not marker.exists():
        raise DemoFailedError(
            f"{directory} is not empty and no earlier demo made it: remove it, or name another --directory."
        )
    shutil.rmtree(directory, ignore_errors=True)
    for name in STORES:
        (directory / "stores" / name).mkdir(parents=True)
    marker.touch()


def _tell(directory: Path, image: str, console: Console) -> list[str]:
    checks = Checks(console)
    console.rule("the image")
    original, source, imports = _original(directory, image, console)
    stores = {
        name: {
            "type": "file",
            "directories": [{"path": str(directory / "stores" / name)}],
            "description": f"the demo's {name} store",
        }
        for name in STORES
    }
    sandbox = Sandbox(directory=directory, stores=stores, sections={"import": imports})
    with _stopped_in_the_end(sandbox):
        console.rule("the daemon")
        started = time.monotonic()
        sandbox.start()
        session = sandbox.pid
        seconds = time.monotonic() - started
        console.print(f"glissade serve is ready after {seconds:.1f} s on {_short(sandbox.socket_path)}")
        image_id, jobs = _main_job(sandbox, original, source, console)
        console.rule("the report")
        _show_report(original, jobs, console)
        console.rule("looking from outside")
        _check_reports(checks, original, jobs)
        _check_files(checks, original, directory, image_id, {"fast", "archive"})
        _check_catalog(checks, sandbox, original, image_id)
    socket_path = sandbox.socket_path
    checks.that(sandbox.exit_status == 0, "the daemon ended by itself on SIGTERM", found=sandbox.exit_status)
    left = processes_in_session(session)
    checks.that(not left, "nothing is left running", found=left)
    checks.that(not socket_path.exists(), "its socket is gone", found=socket_path)
    state = sorted(path.name for path in (directory / "state").rglob("*") if path.is_file())
    wanted = ["catalog.db", "catalog.db.lock"]
    checks.that(state == wanted, "its state is the catalogue and nothing else", found=state)
    return checks.failures


@contextmanager
def _stopped_in_the_end(sandbox: Sandbox) -> Iterator[None]:
    """Drain the daemon when all went well, kill it otherwise: it never outlives the demo."""
    try:
        yield
    except BaseException:
        sandbox.kill()
        raise
    sandbox.stop()


def _original(
    directory: Path, image: str, console: Console
) -> tuple[Original, dict[str, str], dict[str, object]]:
    """The image to import: itself, how a job names it, and what the configuration must allow for it."""
    if image.startswith(("http://", "https://")):
        console.print(f"Reading {image} once to know what it is (the daemon will read it again)")
        with urllib.request.urlopen(image) as response:  # noqa: S310 (the scheme was just checked)
            size, digests = _digest(response)
        return (
            Original(where=image, what="a URL", size_bytes=size, digests=digests),
            {"url": image},
            _allowances(image),
        )
    path = Path(image).absolute() if image else directory / "source" / "disk.img"
    what = "a file"
    if not image:
        path.parent.mkdir()
        what = f"a disk image with {build_disk_image(path, IMAGE_BYTES, mke2fs=find_mke2fs())}, built here"
    elif not path.is_file():
        raise DemoFailedError(
            f"{image} is no regular file: IMAGE is the path of an image, or an http(s) URL."
        )
    with path.open("rb") as file:
        size, digests = _digest(file)
    allocated = path.stat().st_blocks * 512
    console.print(f"{_short(path)}: {what}, {_size(size)}, {_size(allocated)} of it on disk", soft_wrap=True)
    return (
        Original(where=_short(path), what=what, size_bytes=size, digests=digests),
        {"path": str(path.resolve())},
        {"directories": [str(path.resolve().parent)]},
    )


def _allowances(url: str) -> dict[str, object]:
    """What a private daemon must be allowed for this URL: plain http, its port, and its address when that is
    a private one."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = {
        str(found[4][0]) for found in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    }
    private = sorted(a for a in addresses if not ipaddress.ip_address(a).is_global)
    return {
        "allow_http": parts.scheme == "http",
        "ports": sorted({80, 443, port}),
        "allow_private_addresses": [f"{a}/{ipaddress.ip_address(a).max_prefixlen}" for a in private],
    }


def _main_job(
    sandbox: Sandbox, original: Original, source: dict[str, str], console: Console
) -> tuple[str, list[Json]]:
    """Import, verify, move; returns the image's id and the finished jobs. Raises `DemoFailedError` at the
    first that fails."""
    image_id = str(uuid.uuid4())
    jobs: list[Json] = []

    def run(title: str, body: Json) -> None:
        console.rule(title)
        jobs.append(_follow(sandbox, body, console))

    run(
        "import into fast and slow in one read",
        {
            "kind": "import",
            "image": {"id": image_id, "name": "demo", "disk_format": "raw", "container_format": "bare"},
            "source": source,
            "stores": ["fast", "slow"],
            "expected": {"size_bytes": original.size_bytes},
        },
    )
    for store in ("fast", "slow"):
        run(f"verify what is in {store}", {"kind": "verify", "image_id": image_id, "store": store})
    run(
        "move from slow to archive",
        {"kind": "move", "image_id": image_id, "from_store": "slow", "to_store": "archive"},
    )
    return image_id, jobs


def _follow(sandbox: Sandbox, body: Json, console: Console) -> Json:
    """Submit a job and show its progress until it is done: a bar on a terminal, lines elsewhere."""
    accepted = sandbox.submit(body)
    console.print(f"job {accepted['id']} is accepted")
    job = accepted
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("queued", total=None)
        printed = ""
        for job in sandbox.follow(str(accepted["id"])):
            if progress := job["progress"]:
                bar.update(
                    shown,
                    description=progress["phase"],
                    total=progress["size_bytes"],
                    completed=progress["bytes_done"],
                )
                line = _progress_line(progress)
                if not console.is_terminal and line != printed:
                    console.print(f"  {line}", markup=False)
                    printed = line
    if job["state"] != "succeeded":
        error = job["error"] or {}
        raise DemoFailedError(
            f"The {body['kind']} job ended as {job['state']}: {error.get('code')}: {error.get('message')}"
        )
    console.print(f"  {job['state']} after {job['report']['seconds']:.2f} s")
    return job


def _progress_line(progress: Json) -> str:
    """Progress in steps of a quarter, so that a log of it stays short."""
    size, done = progress["size_bytes"], progress["bytes_done"]
    if not size:
        return str(progress["phase"])
    quarter = int(4 * done / size) * 25
    return f"{progress['phase']}: {quarter} %" + (
        f", {_size(progress['rate_bytes_per_s'])}/s" if quarter else ""
    )


def _show_report(original: Original, jobs: list[Json], console: Console) -> None:
    """What each step did, how, and why like that. Lines, not a table: the reasons are sentences."""
    console.print(f"{original.where}: {original.size_bytes:,} bytes", markup=False)
    for name, digest in jobs[0]["report"]["digests"].items():
        console.print(f"  {name:<9}{digest}", soft_wrap=True)
    line = "{:<8}{:<9}{:<9}{:<17}{:>11}{:>9}{:>12}"
    console.print(
        line.format("job", "step", "store", "method", "through us", "seconds", "bytes/s"), style="bold"
    )
    for job in jobs:
        report = job["report"]
        kind = job["kind"]
        for step in report["steps"]:
            figures = _figures(step["bytes_through"], step["seconds"])
            console.print(
                line.format(kind, step["step"], step["store"], step["method"], *figures), markup=False
            )
            for what in ("reason", "verified"):
                if step[what]:
                    console.print(f"        {what}: {step[what]}", style="dim", soft_wrap=True, markup=False)
            kind = ""
        console.print(
            line.format("", "in all", "", "", *_figures(report["bytes_through"], report["seconds"]))
        )


def _figures(through: int, seconds: float) -> tuple[str, str, str]:
    rate = f"{_size(through / seconds)}/s" if through and seconds else ""
    return _size(through), f"{seconds:.3f}", rate


def _check_reports(checks: Checks, original: Original, jobs: list[Json]) -> None:
    first, last = jobs[0]["report"], jobs[-1]["report"]
    checks.that(
        first["bytes_read"] == original.size_bytes,
        "the source was read once for two stores",
        found=first["bytes_read"],
    )
    for name in ALGORITHMS:
        checks.that(
            first["digests"].get(name) == original.digests[name],
            f"the daemon's {name} is the one hashlib finds at the source",
            found=first["digests"].get(name),
        )
    checks.that(
        last["bytes_read"] == 0, "the move passed no byte through the daemon", found=last["bytes_read"]
    )


def _check_files(
    checks: Checks, original: Original, directory: Path, image_id: str, holders: set[str]
) -> None:
    """The stores' directories: exactly the expected files, bit for bit."""
    root = directory / "stores"
    expected = {f"{store}/{image_id}" for store in holders}
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    checks.that(
        found == expected, f"exactly these files exist: {', '.join(sorted(expected))}", found=sorted(found)
    )
    for name in sorted(expected & found):
        with (root / name).open("rb") as file:
            size, digests = _digest(file)
        same = size == original.size_bytes and digests == original.digests
        checks.that(same, f"{name} is bit-identical to the source ({_size(size)})", found=digests)


def _check_catalog(checks: Checks, sandbox: Sandbox, original: Original, image_id: str) -> None:
    image = sandbox.call("GET", f"/v1/images/{image_id}")
    said = (image["status"], image["size"], image["checksum"], sorted(image["stores"]))
    truth = ("active", original.size_bytes, original.digests["md5"], ["archive", "fast"])
    checks.that(said == truth, "the catalogue says so too", found=said)


class _Readable(Protocol):
    """What a file and an HTTP response have in common."""

    def read(self, size: int, /) -> bytes: ...


def _digest(file: _Readable) -> tuple[int, dict[str, str]]:
    """Size and digests of what a binary file still holds."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in ALGORITHMS}
    size = 0
    while block := file.read(MIB):
        size += len(block)
        for each in hashes.values():
            each.update(block)
    return size, {name: each.hexdigest() for name, each in hashes.items()}


def _size(size_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"


def _short(path: Path) -> str:
    """The path as seen from here, when that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
