"""A secret that cannot be printed by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """A password, key or token. Prints as `***` everywhere; `reveal()` where it is used, and nowhere
    else.

    `source` says where the value came from ("file /etc/glissade/s3.key"), never what it is. Pickling is
    refused, so a secret does not travel into a cache, a queue or another process unnoticed.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, *, source: str = "") -> None:
        self._value = value
        self.source = source

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled; reveal it where it is used")
