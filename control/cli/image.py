"""`glissade image`: import, look, save, and every job that works on one image."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from control.cli import output
from control.cli.backfill import fill_missing
from control.cli.client import Json, quoted
from control.cli.exits import WrongUseError
from control.cli.options import Session, job_options, rate_option, wait_option, with_session
from control.cli.output import Column
from control.cli.paging import fetch, paging_options, say_if_more
from control.cli.planning import show_plan
from control.cli.waiting import submit

if TYPE_CHECKING:
    from collections.abc import Callable

    from control.cli.exits import Exit

_PLAN_TIMEOUT_S = 180.0
"""Stores are asked, and have their own time-outs."""
_VERIFY_MODES = ["inline", "readback", "none"]
_HEX = re.compile(r"(?:[0-9a-f]{2})+")


@click.group()
def image() -> None:
    """Import, copy, move, verify, save and delete images."""


def _verify_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--verify",
        type=click.Choice(_VERIFY_MODES),
        default="inline",
        show_default=True,
        help="inline: digest while writing; readback: read the new place again and compare.",
    )(command)


def _allow_partial_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--allow-partial",
        is_flag=True,
        help="Succeed when at least one store took the image, instead of all.",
    )(command)


def _plan_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--plan", is_flag=True, help="Say what would be done, by which method and why; do nothing."
    )(command)


def _refuse_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--refuse-if-down",
        is_flag=True,
        help="Refuse the job when a store cannot be used now, instead of waiting for it.",
    )(command)


def _submit_or_plan(session: Session, request: Json, *, wait: bool, plan: bool) -> Exit:
    if not plan:
        return submit(session, request, wait=wait)
    if wait:
        raise WrongUseError("--plan does nothing that could be waited for.", hint="Leave out --wait.")
    return show_plan(session, session.client.post("/v1/plans", request, timeout_s=_PLAN_TIMEOUT_S))


@image.command("import")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--store",
    "stores",
    metavar="ID",
    multiple=True,
    help="Destination; repeat it for several, read once.  [the default store]",
)
@click.option("--name", help="The image's name.")
@click.option("--id", "image_id", metavar="UUID", help="The image's id.  [a new one]")
@click.option(
    "--disk-format", default="raw", show_default=True, metavar="FORMAT", help="raw, qcow2, vmdk, ..."
)
@click.option(
    "--container-format", default="bare", show_default=True, metavar="FORMAT", help="bare, ova, ..."
)
@click.option(
    "--expect-size", type=click.IntRange(0), metavar="BYTES", help="Refuse an image of another size."
)
@click.option(
    "--expect-digest",
    "digests",
    metavar="ALGO:HEX",
    multiple=True,
    help="Refuse an image with another digest; may be repeated.",
)
@click.option(
    "--os-hash-algo", metavar="ALGO", help="The digest to record beside md5.  [sha512, or as configured]"
)
@_verify_option
@rate_option
@_allow_partial_option
@_refuse_option
@_plan_option
@wait_option
@with_session
@job_options
def import_image(
    session: Session,
    *,
    source: str,
    stores: tuple[str, ...],
    name: str | None,
    image_id: str | None,
    disk_format: str,
    container_format: str,
    expect_size: int | None,
    digests: tuple[str, ...],
    os_hash_algo: str | None,
    verify: str,
    rate_limit: str | None,
    allow_partial: bool,
    refuse_if_down: bool,
    plan: bool,
    wait: bool,
) -> Exit:
    """Take an image in, reading SOURCE once for all stores.

    SOURCE is an http(s) URL, or a path on the daemon's machine beneath one of the directories in
    `[import] directories`; the daemon reads it, not this command.
    """
    expected: Json = _known({"size_bytes": expect_size, "digests": _digests(digests) or None})
    request = _known(
        {
            "kind": "import",
            "image": _known(
                {
                    "id": image_id,
                    "name": name,
                    "disk_format": disk_format,
                    "container_format": container_format,
                }
            ),
            "source": _source(source),
            "stores": list(stores) or [_default_store(session)],
            "all_stores_must_succeed": not allow_partial,
            "expected": expected or None,
            "os_hash_algo": os_hash_algo,
            "verify": verify,
            "rate_limit": rate_limit,
            "wait_for_stores": False if refuse_if_down else None,
        }
    )
    return _submit_or_plan(session, request, wait=wait, plan=plan)


def _source(text: str) -> Json:
    scheme, separator, _ = text.partition("://")
    if not separator:
        if text == "-":
            raise WrongUseError(
                "The daemon cannot read this command's standard input.",
                hint="Write the image to a file in one of the [import] directories first.",
            )
        return {"path": os.path.abspath(text)}
    if scheme.lower() == "file":
        return {"path": text.partition("://")[2]}
    if scheme.lower() not in ("http", "https"):
        raise WrongUseError(f"{scheme}:// is no source.", hint="Give an http:// or https:// URL, or a path.")
    return {"url": text}


def _digests(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        algorithm, _, digest = text.strip().lower().partition(":")
        if not algorithm or _HEX.fullmatch(digest) is None:
            raise WrongUseError(
                f"--expect-digest {text}: write ALGORITHM:HEX, for example sha256:9f86d081..."
            )
        if found.setdefault(algorithm, digest) != digest:
            raise WrongUseError(f"--expect-digest: two different {algorithm} digests cannot both be right.")
    return found


def _default_store(session: Session) -> str:
    for store in session.client.get("/v1/stores").get("stores") or []:
        if store.get("default"):
            return str(store["id"])
    raise WrongUseError(
        "No destination: there is no default store.",
        hint="Give --store ID; see them with: glissade store list",
    )


def _known(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


@image.command("list")
@click.option("--status", help="Only images with this status.")
@paging_options
@with_session
def list_images(
    session: Session, *, status: str | None, limit: int, marker: str | None, everything: bool
) -> None:
    """Images in the catalogue."""
    page = fetch(
        session, "images", query={"status": status}, limit=limit, marker=marker, everything=everything
    )
    if session.as_json:
        output.print_json(page)
        return
    columns = [
        Column("ID"),
        Column("STATUS"),
        Column("SIZE", right=True),
        Column("FORMAT"),
        Column("CREATED"),
        Column("STORES", fold=True),
        Column("NAME", fold=True),
    ]
    output.print_table(columns, [_row(item) for item in page["images"]])
    say_if_more(session, page)


def _row(image: Json) -> list[object]:
    size = image.get("size")
    return [
        image.get("id"),
        image.get("status"),
        None if size is None else output.size_text(size),
        image.get("disk_format"),
        output.time_text(image.get("created_at")),
        ", ".join(image.get("stores") or []),
        image.get("name"),
    ]


@image.command("show")
@click.argument("image_id", metavar="ID")
@with_session
def show_image(session: Session, *, image_id: str) -> None:
    """One image: sizes, digests, where it lies."""
    found = session.client.get(f"/v1/images/{quoted(image_id)}")
    if session.as_json:
        output.print_json(found)
        return
    output.print_fields(
        [
            ("id", found.get("id")),
            ("name", found.get("name")),
            ("status", found.get("status")),
            ("size", output.exact_size_text(found.get("size"))),
            ("virtual size", output.exact_size_text(found.get("virtual_size"))),
            ("md5", found.get("checksum")),
            (str(found.get("os_hash_algo")), found.get("os_hash_value")),
            ("disk format", found.get("disk_format")),
            ("container format", found.get("container_format")),
            ("created", output.time_text(found.get("created_at"))),
            ("updated", output.time_text(found.get("updated_at"))),
            ("stores", ", ".join(found.get("stores") or [])),
        ]
    )
    locations = found.get("locations") or []
    if locations:
        output.print_line()
        output.print_table(
            [Column("STORE"), Column("STATUS"), Column("LOCATION", fold=True)],
            [[item.get("store"), item.get("status"), item.get("url")] for item in locations],
        )
    for item in locations:
        if item.get("status") == "quarantined":
            output.print_line()
            since = output.time_text(item.get("since"))
            output.print_line(f"{item.get('store')} is in quarantine since {since}: {item.get('reason')}")
            session.say(f"When its bytes are right again: glissade image verify {image_id}")


@image.command("save")
@click.argument("image_id", metavar="ID")
@click.argument("target", metavar="FILE")
@click.option("--store", metavar="ID", help="Read it from this store.  [the best that has it]")
@click.option("--force", is_flag=True, help="Overwrite FILE, and what an interrupted save left.")
@with_session
def save_image(session: Session, *, image_id: str, target: str, store: str | None, force: bool) -> Exit:
    """Write an image's bytes to FILE (`-`: standard output), checking size and digests.

    The bytes go to FILE.part, which becomes FILE when everything was right; otherwise nothing is left.
    """
    from control.cli.saving import save

    return save(session, image_id, target, store=store, force=force)


@image.command("copy")
@click.argument("image_id", metavar="ID")
@click.option(
    "--store", "stores", metavar="ID", multiple=True, required=True, help="Destination; may be repeated."
)
@click.option("--from-store", "--from", metavar="ID", help="Read it from this store.  [the best that has it]")
@_verify_option
@rate_option
@_allow_partial_option
@_refuse_option
@_plan_option
@wait_option
@with_session
@job_options
def copy_image(
    session: Session,
    *,
    image_id: str,
    stores: tuple[str, ...],
    from_store: str | None,
    verify: str,
    rate_limit: str | None,
    allow_partial: bool,
    refuse_if_down: bool,
    plan: bool,
    wait: bool,
) -> Exit:
    """Put an image into further stores, reading it once."""
    request = _known(
        {
            "kind": "copy",
            "image_id": image_id,
            "stores": list(stores),
            "from_store": from_store,
            "all_stores_must_succeed": not allow_partial,
            "verify": verify,
            "rate_limit": rate_limit,
            "wait_for_stores": False if refuse_if_down else None,
        }
    )
    return _submit_or_plan(session, request, wait=wait, plan=plan)


@image.command("move")
@click.argument("image_id", metavar="ID")
@click.option("--to-store", "--to", metavar="ID", required=True, help="Where it shall lie.")
@click.option(
    "--from-store",
    "--from",
    metavar="ID",
    help="Where it shall lie no more.  [where it lies, if that is one place]",
)
@rate_option
@_refuse_option
@_plan_option
@wait_option
@with_session
@job_options
def move_image(
    session: Session,
    *,
    image_id: str,
    to_store: str,
    from_store: str | None,
    rate_limit: str | None,
    refuse_if_down: bool,
    plan: bool,
    wait: bool,
) -> Exit:
    """Move an image from one store to another: durable and read back in the new place before the old one
    is deleted.
    """
    request = _known(
        {
            "kind": "move",
            "image_id": image_id,
            "to_store": to_store,
            "from_store": from_store,
            "rate_limit": rate_limit,
            "wait_for_stores": False if refuse_if_down else None,
        }
    )
    return _submit_or_plan(session, request, wait=wait, plan=plan)


def _simple_job(kind: str, help_text: str) -> None:
    """Adds a command for a job that knows only an image and perhaps a store."""

    @image.command(kind, help=help_text)
    @click.argument("image_id", metavar="ID")
    @click.option("--store", metavar="ID", help="Only in this store.")
    @wait_option
    @with_session
    @job_options
    def command(session: Session, *, image_id: str, store: str | None, wait: bool) -> Exit:
        return submit(session, _known({"kind": kind, "image_id": image_id, "store": store}), wait=wait)


_simple_job("verify", "Read an image again and compare it with its recorded size and digests.")


@image.command("hash")
@click.argument("image_id", metavar="[ID]", required=False)
@click.option("--missing", is_flag=True, help="All images that lack a digest and wait for none yet.")
@click.option("--store", metavar="ID", help="Only in this store; with --missing, only images that are there.")
@wait_option
@with_session
@job_options
def hash_image(
    session: Session, *, image_id: str | None, missing: bool, store: str | None, wait: bool
) -> Exit:
    """Read an image, or with --missing all that need it, and record the digests that are missing.

    --missing may be repeated at any time: what has its digests, or a job that computes them, is left out.
    """
    if missing == (image_id is not None):
        raise WrongUseError("Give an image's ID or --missing.", hint="glissade image hash --help")
    if missing and session.idempotency_key is not None:
        raise WrongUseError(
            "--missing needs no idempotency key.", hint="What a job computes already is left out."
        )
    if image_id is not None:
        return submit(session, _known({"kind": "hash", "image_id": image_id, "store": store}), wait=wait)
    return fill_missing(session, store=store, wait=wait)


@image.command("delete")
@click.argument("image_id", metavar="ID")
@click.option("--store", metavar="ID", help="Only in this store.")
@_refuse_option
@wait_option
@with_session
@job_options
def delete_image(
    session: Session, *, image_id: str, store: str | None, refuse_if_down: bool, wait: bool
) -> Exit:
    """Delete an image, or with --store only its copy there."""
    request = _known(
        {
            "kind": "delete",
            "image_id": image_id,
            "store": store,
            "wait_for_stores": False if refuse_if_down else None,
        }
    )
    return submit(session, request, wait=wait)
