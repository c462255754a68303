"""How a daemon asks the Keystone of the tests, which may stand still for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from control.config.settings import KeystoneSettings
from drivers.secret import Secret

if TYPE_CHECKING:
    from tests.services.keystone import Keystone


def settings_for(keystone: Keystone, **more: Any) -> KeystoneSettings:
    """As its service user; `more` goes before."""
    user = keystone.service
    return KeystoneSettings(
        **{
            "auth_url": keystone.auth_url,
            "user": user.name,
            "password": Secret(user.password),
            "project": user.project,
            "timeout_s": 60.0,
            **more,
        }
    )
