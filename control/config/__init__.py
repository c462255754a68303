"""Configuration: TOML files and environment in, frozen and checked settings out; every mistake reported
at once.

Importing this package imports pydantic; what must start quickly (the client commands) does not import it.
"""

from __future__ import annotations

from control.config.load import load_settings
from control.config.problems import ConfigError, Problem
from control.config.settings import (
    ApiSettings,
    CatalogSettings,
    ImageSettings,
    ImportSettings,
    JobSettings,
    NodeSettings,
    Settings,
    StoreSettings,
)

__all__ = [
    "ApiSettings",
    "CatalogSettings",
    "ConfigError",
    "ImageSettings",
    "ImportSettings",
    "JobSettings",
    "NodeSettings",
    "Problem",
    "Settings",
    "StoreSettings",
    "load_settings",
]
