"""What a copy of an image is held against, and what it computes besides, by what is recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from control.catalog.images import Image
from control.catalog.tables import utc_now
from control.jobs.recipes.base import missing_digests, proof_of
from dataplane.errors import UnknownDigestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MD5 = "1" * 32
STRONG = "2" * 128

IMAGE = Image(
    id="an image",
    name=None,
    status="active",
    size_bytes=7,
    virtual_size_bytes=None,
    checksum=None,
    os_hash_algo=None,
    os_hash_value=None,
    disk_format="raw",
    container_format="bare",
    protected=False,
    created_at=utc_now(),
    updated_at=None,
)


@pytest.mark.parametrize("algorithm", ["sha512", "sha384", "sha256"])
def test_a_strong_digest_is_proof_alone(algorithm: str) -> None:
    image = replace(IMAGE, checksum=MD5, os_hash_algo=algorithm, os_hash_value=STRONG)
    assert proof_of(image).digests == {algorithm: STRONG}
    assert proof_of(image).size_bytes == 7
    assert missing_digests(image, "sha512") == ()


@pytest.mark.parametrize(
    ("checksum", "algorithm", "value", "proof", "missing"),
    [
        (None, None, None, {}, ("md5", "sha512")),
        (MD5, None, None, {"md5": MD5}, ("sha512",)),
        (MD5, "sha256", None, {"md5": MD5}, ("sha256",)),
        (None, "sha512", STRONG, {"sha512": STRONG}, ("md5",)),
        # Collisions of it can be made: md5 beside it is held against, too.
        (MD5, "sha1", STRONG, {"md5": MD5, "sha1": STRONG}, ()),
    ],
)
def test_whatever_else_is_known_is_held_against_and_what_is_missing_computed(
    checksum: str | None,
    algorithm: str | None,
    value: str | None,
    proof: Mapping[str, str],
    missing: Sequence[str],
) -> None:
    image = replace(IMAGE, checksum=checksum, os_hash_algo=algorithm, os_hash_value=value)
    assert proof_of(image).digests == proof
    assert missing_digests(image, "sha512") == missing


@pytest.mark.parametrize("checksum", [MD5, None])
def test_a_digest_that_cannot_be_computed_here_is_not_replaced_by_a_weaker_one(checksum: str | None) -> None:
    """A move would delete the source for less proof than there is."""
    image = replace(IMAGE, checksum=checksum, os_hash_algo="sha3_512", os_hash_value=STRONG)
    with pytest.raises(UnknownDigestError, match="sha3_512"):
        proof_of(image)
