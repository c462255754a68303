"""The bare calls by which a server copies an image by itself: nothing that uses it can be faster.

Runs with the rivals' own interpreter: `python bare_copy.py @FILE`; the file holds, as JSON, the kind of
server (`s3`: one CopyObject, or with `part_bytes` UploadPartCopy, eight at once; `swift`: one COPY for each
segment, eight at once, and a new manifest), the server's fields, the image's key and where it goes (bucket or
container). The copy is deleted afterwards.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.measure import Window, gate

AT_ONCE = 8


def main(file: str) -> None:
    """Copy and tell it."""
    call = json.loads(Path(file.removeprefix("@")).read_text())
    (_s3 if call["kind"] == "s3" else _swift)(call)


def _s3(call: dict[str, Any]) -> None:
    boto3, config = importlib.import_module("boto3"), importlib.import_module("botocore.config")
    server, key = call["server"], call["key"]
    client = boto3.client(
        "s3",
        endpoint_url=server["url"],
        region_name=server["region"],
        aws_access_key_id=server["access_key"],
        aws_secret_access_key=server["secret_key"],
        config=config.Config(s3={"addressing_style": "path"}),
    )
    size = client.head_object(Bucket=server["bucket"], Key=key)["ContentLength"]  # It has a connection now.
    place = {"Bucket": call["to"], "Key": key}
    source = {"Bucket": server["bucket"], "Key": key}
    part_bytes = call["part_bytes"]

    def copy_part(upload: str, number: int) -> dict[str, Any]:
        first = (number - 1) * part_bytes
        copied = client.upload_part_copy(
            **place,
            UploadId=upload,
            PartNumber=number,
            CopySource=source,
            CopySourceRange=f"bytes={first}-{min(first + part_bytes, size) - 1}",
        )
        return {"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]}

    with ThreadPoolExecutor(AT_ONCE) as threads:
        gate()
        with Window(call["server_pids"]) as window:
            if part_bytes is None:
                client.copy_object(**place, CopySource=source)
            else:
                upload = client.create_multipart_upload(**place)["UploadId"]
                numbers = range(1, -(-size // part_bytes) + 1)
                parts = list(threads.map(lambda number: copy_part(upload, number), numbers))
                client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    copied = client.head_object(Bucket=call["to"], Key=key)["ContentLength"]
    client.delete_object(Bucket=call["to"], Key=key)
    if copied != size:
        raise SystemExit(f"the copy has {copied} bytes instead of {size}")
    window.tell(requests=1)


def _swift(call: dict[str, Any]) -> None:
    swiftclient = importlib.import_module("swiftclient")
    server, key, to = call["server"], call["key"], call["to"]
    url, token = swiftclient.get_auth(server["auth_url"], server["user"], server["key"], auth_version="1")
    connections = threading.local()

    def connection() -> Any:
        if not hasattr(connections, "http"):
            connections.http = swiftclient.http_connection(url)
        return connections.http

    def copy(name: str) -> None:
        swiftclient.copy_object(
            url,
            token,
            server["container"],
            name,
            destination=f"/{to}/{name}",
            http_conn=connection(),
        )

    _, listed = swiftclient.get_container(
        url, token, server["container"], prefix=f"{key}/", full_listing=True
    )
    segments = sorted((each for each in listed if each["bytes"]), key=lambda each: each["name"])
    size = int(swiftclient.head_object(url, token, server["container"], key)["content-length"])
    if segments and sum(each["bytes"] for each in segments) != size:
        raise SystemExit(f"the segments of {key} were not found")
    names = [each["name"] for each in segments] or [key]  # A small image is one object.
    manifest = [
        {"path": f"/{to}/{each['name']}", "etag": each["hash"], "size_bytes": each["bytes"]}
        for each in segments
    ]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(lambda _: connection(), range(AT_ONCE)))
        gate()
        with Window(call["server_pids"]) as window:
            list(threads.map(copy, names))
            if segments:
                swiftclient.put_object(
                    url,
                    token,
                    to,
                    key,
                    contents=json.dumps(manifest),
                    query_string="multipart-manifest=put",
                    http_conn=connection(),
                )
    copied = int(swiftclient.head_object(url, token, to, key)["content-length"])
    for name in dict.fromkeys((key, *names)):
        swiftclient.delete_object(url, token, to, name)
    if copied != size:
        raise SystemExit(f"the copy has {copied} bytes instead of {size}")
    window.tell(requests=len(names) + bool(segments))


if __name__ == "__main__":
    main(sys.argv[1])
