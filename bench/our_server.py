"""Our daemon as others reach it: over TCP, with tokens; in front of the stores that Glance has too."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from bench.model import OURS, BenchError
from control.api.auth.tokens import new_token
from control.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bench.services import Services

OWNER = "bench"


@dataclass(slots=True, kw_only=True)
class OurServer:
    """One daemon. Use it as a context: entering starts it, leaving stops it.

    Its stores: `file`, in `store`, and of the services, if there are, `s3` and `rbd`. Everything else it has
    is in `directory`. `tokens` are of so many callers, who all may do everything in one project; `sections`
    are further ones of its configuration, `store_options` further keys of `file`. Belongs to one thread.
    """

    directory: Path
    store: Path
    services: Services | None = None
    callers: int = 1
    sections: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    store_options: Mapping[str, object] = field(default_factory=dict)
    name: str = OURS
    url: str = field(default="", init=False)
    tokens: Sequence[str] = field(default=(), init=False)
    sandbox: Sandbox = field(init=False)

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = [
            new_token(name=f"caller-{number}", roles=("admin", "service"), project=OWNER, expires_at=None)
            for number in range(self.callers)
        ]
        self.tokens = [each.token for each in made]
        tokens_file = self._secret("tokens", "".join(f"{each.line}\n" for each in made))
        address = f"127.0.0.1:{_free_port()}"
        self.url = f"http://{address}"
        self.sandbox = Sandbox(
            directory=self.directory,
            stores=self._stores(),
            sections={"api": {"listen": [address], "tokens_file": tokens_file}, **self.sections},
        )
        try:
            self.sandbox.start()
        except SandboxError as error:  # Its log goes with its directory.
            raise BenchError(f"{error} {self.last_words()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.sandbox.stop()

    @property
    def pid(self) -> int:
        return self.sandbox.pid

    @property
    def token(self) -> str:
        return self.tokens[0]

    def last_words(self) -> str:
        """The end of its log."""
        return self.sandbox.log_tail()

    def _stores(self) -> dict[str, Mapping[str, object]]:
        stores: dict[str, Mapping[str, object]] = {
            "file": {"type": "file", "directories": [str(self.store)], **self.store_options},
        }
        if self.services is not None and (s3 := self.services.s3) is not None:
            stores["s3"] = {
                "type": "s3",
                "endpoint": s3.url,
                "bucket": s3.bucket,
                "region": s3.region,
                "access_key": s3.access_key,
                "secret_key": {"file": self._secret("s3-key", s3.secret_key)},
            }
        if self.services is not None and (rbd := self.services.rbd) is not None:
            stores["rbd"] = {"type": "rbd", "conf_file": rbd.conf_file, "user": rbd.user, "pool": rbd.pool}
        return stores

    def _secret(self, name: str, content: str) -> str:
        """A file that nobody else reads; returns its path."""
        file = self.directory / name
        file.touch(mode=0o600)
        file.write_text(content)
        return str(file)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
