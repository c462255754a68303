"""A daemon beside a web server: with a store `web` that reads it, and imports from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from control.config import StoreSettings
from drivers.http.config import HttpConfig
from drivers.options import RetryOptions, StoreOptions
from tests.integration.in_process import Place

if TYPE_CHECKING:
    from control.config import Settings

_OPEN = ("127.0.0.1/32",)


@dataclass(slots=True)
class WebPlace(Place):
    """`port` is the web server's; nothing else on this machine is read."""

    port: int = 0

    def settings(self) -> Settings:
        settings = Place.settings(self)
        web = StoreSettings(
            id="web",
            type="http",
            options=StoreOptions(
                stall_timeout_s=2.0, retry=RetryOptions(attempts=2, first_wait_s=0.01, longest_wait_s=0.01)
            ),
            config=HttpConfig(schemes=("http",), ports=(self.port,), allow_cidrs=_OPEN),
        )
        return replace(
            settings,
            stores={**settings.stores, "web": web},
            imports=replace(
                settings.imports, allow_http=True, ports=(self.port,), allow_private_addresses=_OPEN
            ),
        )
