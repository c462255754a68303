"""Glance itself, of which we are to take half the time: a server of its own below one directory.

It runs as its documentation has it since it lost its own server: as a WSGI application in uwsgi, one process
with threads, on loopback. Nobody logs in: a filter in front says who asks, as the one for Keystone would, so
that what Keystone costs is measured for nobody. Its catalogue is SQLite, as ours.
"""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import subprocess
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self

from bench.http_call import call
from bench.model import BenchError
from bench.rivals import GLANCE_STORE, RIVALS_PYTHON

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.services import Services

GLANCE: Final = "glance"
TOKEN: Final = secrets.token_hex(16)
"""Any will do: the client does not ask without one, and the filter in front of Glance looks at none."""
_UWSGI: Final = RIVALS_PYTHON.with_name("uwsgi")
_MANAGE: Final = RIVALS_PYTHON.with_name("glance-manage")
_READY_S: Final = 60.0
_STOP_S: Final = 20.0

_FILTER: Final = """
WHO = {
    "HTTP_X_IDENTITY_STATUS": "Confirmed",
    "HTTP_X_ROLES": "admin,member,reader,service",
    "HTTP_X_PROJECT_ID": "f" * 32,
    "HTTP_X_USER_ID": "e" * 32,
}


def filter_factory(global_conf, **local_conf):
    def factory(application):
        def says_who(environ, start_response):
            return application({**WHO, **environ}, start_response)
        return says_who
    return factory
"""

_PASTE: Final = """
[composite:glance-api-bench]
paste.composite_factory = glance.api:root_app_factory
/: api
/healthcheck: healthcheck
[composite:api]
paste.composite_factory = glance.api:pipeline_factory
bench = versionnegotiation who context rootapp
[composite:rootapp]
paste.composite_factory = glance.api:root_app_factory
/: apiversions
/v2: apiv2app
[app:apiversions]
paste.app_factory = glance.api.versions:create_resource
[app:apiv2app]
paste.app_factory = glance.api.v2.router:API.factory
[app:healthcheck]
paste.app_factory = oslo_middleware:Healthcheck.app_factory
[filter:versionnegotiation]
paste.filter_factory = glance.api.middleware.version_negotiation:VersionNegotiationFilter.factory
[filter:who]
paste.filter_factory = bench_who:filter_factory
[filter:context]
paste.filter_factory = glance.api.middleware.context:ContextMiddleware.factory
"""


def missing() -> str | None:
    """Why Glance cannot run here, or None."""
    if (why := GLANCE_STORE.missing()) is not None:
        return why
    return None if _UWSGI.exists() and _MANAGE.exists() else "its environment .venv-rivals has no Glance"


@dataclass(slots=True, kw_only=True)
class GlanceServer:
    """One Glance. Use it as a context: entering makes its database and starts it, leaving stops it.

    Its stores: `file`, in `store`, and of the services, if there are, `s3` and `rbd`. Everything else it has
    is in `directory`. Belongs to one thread.
    """

    directory: Path
    store: Path
    services: Services | None = None
    name: str = GLANCE
    token: str = TOKEN
    url: str = field(default="", init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process whose children do the work."""
        if self._process is None:
            raise BenchError("Glance is not running")
        return self._process.pid

    @property
    def stores(self) -> list[str]:
        """Their ids."""
        found = ["file"]
        if self.services is not None:
            found += ["s3"] * (self.services.s3 is not None) + ["rbd"] * (self.services.rbd is not None)
        return found

    def start(self) -> None:
        """Configure it, make its database, start it, and wait until it answers. Raises `BenchError` with what
        it said, with nothing running."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._configure(port)
        environment = {
            **os.environ,
            "OS_GLANCE_CONFIG_DIR": str(self.directory),
            "PYTHONPATH": str(self.directory),
        }
        config = self.directory / "glance-api.conf"
        made = subprocess.run(
            [_MANAGE, "--config-file", config, "db_sync"],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        if made.returncode != 0:
            raise BenchError(f"Glance's database could not be made: {made.stderr.strip()[-1000:]}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [_UWSGI, "--ini", self.directory / "uwsgi.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and wait for it; it has no work that anybody would miss."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def last_words(self) -> str:
        """The end of its logs."""
        return "\n".join(
            file.read_text(errors="replace")[-1000:]
            for file in (self._log, self.directory / "glance.log")
            if file.exists()
        )

    @property
    def _log(self) -> Path:
        return self.directory / "uwsgi.log"

    def _wait_until_ready(self) -> None:
        ends = time.monotonic() + _READY_S
        while time.monotonic() < ends:
            if self._process is None or self._process.poll() is not None:
                raise BenchError(f"Glance did not start: {self.last_words()}")
            try:
                status, _ = call("GET", f"{self.url}/v2/images", timeout_s=5.0)
            except (OSError, http.client.HTTPException):
                status = 0
            if status == HTTPStatus.OK:
                return
            time.sleep(0.1)
        raise BenchError(f"Glance does not answer: {self.last_words()}")

    def _configure(self, port: int) -> None:
        """What it needs to run at all, and nothing that would change what it does with bytes."""
        (self.directory / "bench_who.py").write_text(_FILTER)
        (self.directory / "glance-api-paste.ini").write_text(_PASTE)
        for name in ("staging", "tasks", "locks"):
            (self.directory / name).mkdir(exist_ok=True)
        config = self.directory / "glance-api.conf"
        config.touch(mode=0o600)  # It holds the key of S3.
        config.write_text(_ini(self._sections()))
        (self.directory / "uwsgi.ini").write_text(_ini({"uwsgi": self._uwsgi(port)}))

    def _sections(self) -> dict[str, Mapping[str, object]]:
        sections: dict[str, Mapping[str, object]] = {
            "DEFAULT": {
                "enabled_backends": ",".join(f"{store}:{store}" for store in self.stores),
                "worker_self_reference_url": self.url,
                "log_file": self.directory / "glance.log",
                "use_stderr": "false",
                "enabled_import_methods": "[glance-direct,web-download,copy-image]",
                "transport_url": "fake://",
            },
            "paste_deploy": {
                "flavor": "bench",
                "config_file": self.directory / "glance-api-paste.ini",
            },
            "database": {"connection": f"sqlite:///{self.directory / 'glance.sqlite'}"},
            "oslo_concurrency": {"lock_path": self.directory / "locks"},
            "glance_store": {"default_backend": "file"},
            "file": {"filesystem_store_datadir": self.store},
            "os_glance_staging_store": {"filesystem_store_datadir": self.directory / "staging"},
            "os_glance_tasks_store": {"filesystem_store_datadir": self.directory / "tasks"},
        }
        if self.services is not None and (s3 := self.services.s3) is not None:
            sections["s3"] = {
                "s3_store_host": s3.url,
                "s3_store_region_name": s3.region,
                "s3_store_access_key": s3.access_key,
                "s3_store_secret_key": s3.secret_key,
                "s3_store_bucket": s3.bucket,
                "s3_store_bucket_url_format": "path",
            }
        if self.services is not None and (rbd := self.services.rbd) is not None:
            sections["rbd"] = {
                "rbd_store_ceph_conf": rbd.conf_file,
                "rbd_store_user": rbd.user,
                "rbd_store_pool": rbd.pool,
            }
        return sections

    def _uwsgi(self, port: int) -> dict[str, Any]:
        return {
            "module": "glance.wsgi.api:application",
            "http-socket": f"127.0.0.1:{port}",
            # glance sends chunks of 1 MiB, which the default refuses.
            "chunked-input-limit": 8 << 20,
            "chunked-input-timeout": 60,
            "master": "true",
            "processes": 1,
            "threads": 8,
            "enable-threads": "true",
            "lazy-apps": "true",
            "die-on-term": "true",
            "no-orphans": "true",
            "add-header": "Connection: close",
            "buffer-size": 65535,
            "disable-logging": "true",
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ini(sections: Mapping[str, Mapping[str, object]]) -> str:
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in values.items())]
    return "\n".join(lines) + "\n"
