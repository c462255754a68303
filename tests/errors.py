"""The typed errors of the project, for tests that hold for each of them."""

from __future__ import annotations

import importlib
import pkgutil

from dataplane.errors import GlissadeError

_PACKAGES = ("dataplane", "drivers", "control")


def every_error() -> list[type[GlissadeError]]:
    """All classes of errors, also those of modules that nobody has imported yet."""
    for top in _PACKAGES:
        package = importlib.import_module(top)
        for module in pkgutil.walk_packages(package.__path__, f"{top}."):
            if ".migrations" not in module.name:
                importlib.import_module(module.name)
    found: list[type[GlissadeError]] = []
    pending: list[type[GlissadeError]] = [GlissadeError]
    while pending:
        error = pending.pop()
        pending.extend(error.__subclasses__())
        if error.__module__.split(".")[0] in _PACKAGES:
            found.append(error)
    return found
