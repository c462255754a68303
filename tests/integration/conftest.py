"""What the tests of this directory share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def patient_catalogue(request: pytest.FixtureRequest) -> Iterator[None]:
    """A PostgreSQL that stands still for some seconds, as a machine that is shared does, is not away yet."""
    if not any("postgres" in marker.args for marker in request.node.iter_markers("service")):
        yield
        return
    from control.catalog import postgres

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_CONNECT_S", "_TRANSACTION_S"):
            patch.setattr(postgres, name, 30.0)
        patch.setitem(postgres._SESSION, "lock_timeout", "25s")
        yield
