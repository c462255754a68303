"""Tokens that have to be kept until a job needs them, in a form of which the catalogue and its backups give
nothing away.

The keys come from the secret with which this service asks Keystone, which all nodes have and the catalogue
has not. Who has the catalogue could try secrets on what is sealed: the derivation of the master key makes
that slow. It is derived once; each token then has a key of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from drivers.secret import Secret

_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_COST: Final = {"n": 2**15, "r": 8, "p": 1, "maxmem": 64 * 1024 * 1024, "dklen": _KEY_BYTES}
"""32 MiB and about 0.1 s."""
_MASTER_SALT: Final = b"glissade: tokens of imports"
"""The same everywhere: a node opens what another one sealed, and they share nothing else but the secret."""


def master_key(secret: Secret) -> bytes:
    """What is sealed and opened with, where the secret is this one. Blocks, for about 0.1 s."""
    return hashlib.scrypt(secret.reveal().encode(), salt=_MASTER_SALT, **_COST)


def seal(text: str, master: bytes, *, about: str) -> str:
    """The text, to be opened only with the same master key, and only as what it is `about`."""
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    closed = AESGCM(_key(master, salt)).encrypt(nonce, text.encode(), about.encode())
    return base64.b64encode(salt + nonce + closed).decode()


def unseal(sealed: str, master: bytes, *, about: str) -> str | None:
    """What was sealed; None when it was with another key, about something else, or is damaged."""
    try:
        raw = base64.b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        return None
    salt, nonce, closed = (
        raw[:_SALT_BYTES],
        raw[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES],
        raw[_SALT_BYTES + _NONCE_BYTES :],
    )
    if len(nonce) < _NONCE_BYTES:
        return None
    try:
        return AESGCM(_key(master, salt)).decrypt(nonce, closed, about.encode()).decode()
    except InvalidTag:
        return None


def _key(master: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=salt, info=b"token").derive(master)
