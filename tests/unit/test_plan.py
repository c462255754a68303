"""Plans: offload where it is allowed, stream otherwise, and always a reason."""

from __future__ import annotations

import pytest

from dataplane.errors import OffloadDeclinedError
from dataplane.plan import STREAM, plan
from dataplane.store import Intent, OffloadOffer

LINK = OffloadOffer(method="hard link", reason="same mount", shares_storage=True)
REFLINK = OffloadOffer(method="reflink", reason="same file system")


@pytest.mark.parametrize(
    ("offer", "intent", "must_read", "method", "reason"),
    [
        (None, Intent.COPY, False, STREAM, "takes objects only as a stream"),
        (OffloadDeclinedError("b: other device", store="b"), Intent.MOVE, False, STREAM, "b: other device"),
        (REFLINK, Intent.COPY, False, "reflink", "same file system"),
        (REFLINK, Intent.COPY, True, STREAM, "digests have to be computed"),
        (REFLINK, Intent.MOVE, True, STREAM, "digests have to be computed"),
        (LINK, Intent.MOVE, True, "hard link", "same mount"),
        (LINK, Intent.MOVE, False, "hard link", "same mount"),
    ],
)
def test_the_method_and_its_reason(
    offer: OffloadOffer | OffloadDeclinedError | None,
    intent: Intent,
    must_read: bool,
    method: str,
    reason: str,
) -> None:
    step = plan({"b": offer}, intent=intent, must_read=must_read)["b"]
    assert step.method == method
    assert reason in step.reason
    assert step.store == "b"


def test_each_store_gets_its_own_step() -> None:
    steps = plan({"a": REFLINK, "b": None, "c": LINK}, intent=Intent.MOVE, must_read=False)
    assert {store: step.method for store, step in steps.items()} == {
        "a": "reflink",
        "b": STREAM,
        "c": "hard link",
    }
