"""An Images API, and what people do with it: the `glance` command as it comes, and small questions beside.

What a run costs is told apart: the CPU time of a sample is the API server's, of the whole tree of its
processes; the client's is the fact `client_cpu_s`, that of the servers behind its stores `server_cpu_s`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from bench.http_call import call
from bench.measure import cpu_s_of, peak_rss_bytes, run_program
from bench.model import BenchError, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GLANCE_CLIENT: Final = Path(__file__).parent.parent / ".venv-clients" / "bin" / "glance"
POLLED_EVERY_S: Final = 0.25
"""Often enough to tell the end of a copy of seconds, seldom enough that the answers cost nothing beside."""

_IMPORT_S: Final = 600.0
_IDLE_S: Final = 60.0

Json = dict[str, Any]


class ImageServer(Protocol):
    """An Images API on this machine, that somebody else has started and stops."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...

    @property
    def token(self) -> str: ...

    @property
    def pid(self) -> int:
        """Of the process that does the work, or whose children do."""
        ...

    @property
    def store(self) -> Path:
        """The directory of its file store, which it names `file`: images lie there under their ids."""
        ...

    def last_words(self) -> str:
        """The end of its log."""
        ...


def missing() -> str | None:
    """Why nobody can ask an Images API here, or None."""
    return None if GLANCE_CLIENT.exists() else "the clients' environment .venv-clients is not made"


def process_tree(pid: int) -> list[int]:
    """The process and all that descend from it and live."""
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        found.append(parent)
        try:
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageClient:
    """Who asks one server. `server_pids` do the work of the servers behind its stores."""

    server: ImageServer
    server_pids: Sequence[int] = ()

    def upload(self, path: Path) -> tuple[Sample, str]:
        """`glance image-create --file` into the file store: what it took, and the image's id."""
        before = {image["id"] for image in self._images()}
        sample = self._measured(
            lambda: self._glance(
                "image-create",
                "--disk-format=raw",
                "--container-format=bare",
                f"--name={path.name}",
                "--store=file",
                "--file",
                path,
            )
        )
        made = [image["id"] for image in self._images() if image["id"] not in before]
        if len(made) != 1:
            raise BenchError(f"{self.server.name} has {len(made)} new images after an upload")
        return sample, str(made[0])

    def copy(self, image: str, store: str) -> Sample:
        """`glance image-import --import-method copy-image`, until the image is said to be in the store."""

        def copied() -> Sample:
            started = time.monotonic()
            asked = self._glance("image-import", "--import-method=copy-image", f"--stores={store}", image)
            self._wait_for(image, store)
            return Sample(wall_s=time.monotonic() - started, cpu_s=asked.cpu_s, peak_rss_bytes=0)

        return self._measured(copied)

    def download(self, image: str, path: Path) -> Sample:
        """`glance image-download` into a file. The client itself compares what it got with the sha512."""
        return self._measured(lambda: self._glance("image-download", f"--file={path}", image))

    def show(self, image: str) -> Json:
        """The image as the API tells it."""
        return self._call("GET", f"/v2/images/{image}")

    def delete(self, image: str) -> None:
        """Remove it with its data, when nothing is at work on it any more."""
        self.wait_until_idle(image)
        self._call("DELETE", f"/v2/images/{image}")

    def wait_until_idle(self, image: str) -> None:
        """Until no import is at work on it: a copy is finished a moment after the image is in the store."""
        ends = time.monotonic() + _IDLE_S
        while self.show(image).get("os_glance_import_task"):
            if time.monotonic() > ends:
                raise BenchError(f"{self.server.name} does not end its import of {image}")
            time.sleep(0.05)

    def _images(self) -> list[Json]:
        found: list[Json] = self._call("GET", "/v2/images?limit=1000")["images"]
        return found

    def _wait_for(self, image: str, store: str) -> None:
        ends = time.monotonic() + _IMPORT_S
        while time.monotonic() < ends:
            shown = self.show(image)
            if store in _listed(shown, "stores"):
                return
            if store in _listed(shown, "os_glance_failed_import"):
                raise BenchError(
                    f"{self.server.name} failed to copy into {store}: {self.server.last_words()[-1000:]}"
                )
            time.sleep(POLLED_EVERY_S)
        raise BenchError(f"{self.server.name} did not copy into {store} within {_IMPORT_S:g} s")

    def _measured(self, work: Callable[[], Sample]) -> Sample:
        """What the client's program tells, with the server's costs beside it."""
        tree = process_tree(self.server.pid)
        before, behind = cpu_s_of(tree), cpu_s_of(self.server_pids)
        _forget_peaks(tree)
        by_client = work()
        # Of a child that came and went since then, its parent knows.
        after = process_tree(self.server.pid)
        return Sample(
            wall_s=by_client.wall_s,
            cpu_s=cpu_s_of(after) - before,
            peak_rss_bytes=sum(peak_rss_bytes(pid) for pid in after),
            facts={
                "client_cpu_s": by_client.cpu_s,
                "server_cpu_s": cpu_s_of(self.server_pids) - behind,
            },
        )

    def _glance(self, *words: str | Path) -> Sample:
        try:
            return run_program(
                [GLANCE_CLIENT, f"--os-image-url={self.server.url}", *words],
                environment={"OS_AUTH_TOKEN": self.server.token, "PYTHONWARNINGS": "ignore"},
            )
        except BenchError as error:
            raise BenchError(f"{self.server.name}: {error}: {self.server.last_words()[-1000:]}") from error

    def _call(self, method: str, path: str) -> Json:
        status, content = call(
            method, f"{self.server.url}{path}", headers={"X-Auth-Token": self.server.token}
        )
        if status >= HTTPStatus.BAD_REQUEST:
            words = content.decode(errors="replace")[:500]
            raise BenchError(f"{self.server.name}: {method} {path}: {status}: {words}")
        return json.loads(content) if content else {}


def _listed(shown: Json, name: str) -> list[str]:
    return [each for each in str(shown.get(name) or "").split(",") if each]


def _forget_peaks(pids: Sequence[int]) -> None:
    """Let the high-water mark of each begin again: clear_refs in
    https://docs.kernel.org/filesystems/proc.html."""
    for pid in pids:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except (FileNotFoundError, ProcessLookupError):
            continue
