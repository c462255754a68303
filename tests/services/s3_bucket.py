"""A bucket of one test, made, listed and removed by botocore itself, without our driver."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import botocore.config
import botocore.session
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.endpoints import S3Endpoint

_numbers = itertools.count(1)
_REMOVED_WITHIN_S = 60.0


class Bucket:
    """A bucket and a plain client for it."""

    def __init__(self, endpoint: S3Endpoint, name: str) -> None:
        self.name = name
        self.client = client_of(endpoint)

    def names(self) -> set[str]:
        """Everything in it: objects by their keys, and multipart uploads that are not finished."""
        return self.objects() | {f"{key} (upload)" for key, _ in self.uploads()}

    def uploads(self) -> list[tuple[str, str]]:
        found = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return [(upload["Key"], upload["UploadId"]) for upload in found]

    def empty(self) -> None:
        for key in self.objects():
            self.client.delete_object(Bucket=self.name, Key=key)
        for key, upload in self.uploads():
            with suppress(self.client.exceptions.NoSuchUpload):
                self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)

    def objects(self) -> set[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {one["Key"] for one in found}

    def remove(self) -> None:
        """With all that is in it; what a killed client had sent may come in even now."""
        deadline = time.monotonic() + _REMOVED_WITHIN_S
        while True:
            self.empty()
            try:
                self.client.delete_bucket(Bucket=self.name)
            except ClientError as error:
                if error.response["Error"]["Code"] != "BucketNotEmpty" or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return


@contextmanager
def bucket(endpoint: S3Endpoint) -> Iterator[Bucket]:
    made = Bucket(endpoint, f"glissade-{os.getpid()}-{next(_numbers)}")
    made.client.create_bucket(Bucket=made.name)
    try:
        yield made
    finally:
        made.remove()
        made.client.close()


@cache
def _session() -> Any:
    return botocore.session.Session()


def client_of(endpoint: S3Endpoint) -> Any:
    """Closes each connection with its answer: the test's own descriptors do not count as the driver's."""
    client = _session().create_client(
        "s3",
        endpoint_url=endpoint.url,
        region_name=endpoint.region,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        config=botocore.config.Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )
    client.meta.events.register(
        "before-send.s3", lambda request, **_: request.headers.__setitem__("Connection", "close")
    )
    return client
