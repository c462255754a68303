"""The tables. `images` and `image_locations` have exactly Glance's columns, types, indexes and conventions,
so that the same statements work on the database of a Glance; `jobs` is ours.

Glance's conventions: all times are naive UTC; deleted rows stay, with `deleted` true and `deleted_at` set;
a location's `meta_data` is a JSON object whose `store` names the store; readers see only locations that are
not deleted and have status `active`.
https://opendev.org/openstack/glance/src/branch/master/glance/db/sqlalchemy/models.py
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)
from sqlalchemy.types import TypeDecorator

metadata = MetaData()


def utc_now() -> datetime:
    """The time as these tables hold it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


class JsonText(TypeDecorator[Any]):
    """A JSON value in a TEXT column, as Glance keeps `meta_data`; NULL is None."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002 (SQLAlchemy's signature)
        return None if value is None else json.loads(value)


def _common() -> tuple[Column[Any], ...]:
    return (
        Column("created_at", DateTime, nullable=False),
        Column("updated_at", DateTime),
        Column("deleted_at", DateTime),
        Column("deleted", Boolean, nullable=False, default=False),
    )


images = Table(
    "images",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(255)),
    Column("disk_format", String(20)),
    Column("container_format", String(20)),
    Column("size", BigInteger),
    Column("virtual_size", BigInteger),
    Column("status", String(30), nullable=False),
    Column(
        "visibility",
        Enum("private", "public", "shared", "community", name="image_visibility"),
        nullable=False,
        server_default="shared",
    ),
    Column("checksum", String(32)),
    Column("os_hash_algo", String(64)),
    Column("os_hash_value", String(128)),
    Column("min_disk", Integer, nullable=False, default=0),
    Column("min_ram", Integer, nullable=False, default=0),
    Column("owner", String(255)),
    Column("protected", Boolean, nullable=False, default=False, server_default=false()),
    Column("os_hidden", Boolean, nullable=False, default=False, server_default=false()),
    *_common(),
    Index("checksum_image_idx", "checksum"),
    Index("visibility_image_idx", "visibility"),
    Index("ix_images_deleted", "deleted"),
    Index("owner_image_idx", "owner"),
    Index("created_at_image_idx", "created_at"),
    Index("updated_at_image_idx", "updated_at"),
    Index("os_hidden_image_idx", "os_hidden"),
    Index("os_hash_value_image_idx", "os_hash_value"),
)

image_locations = Table(
    "image_locations",
    metadata,
    Column("id", Integer, primary_key=True, nullable=False),
    Column("image_id", String(36), ForeignKey("images.id"), nullable=False),
    Column("value", Text, nullable=False),
    Column("meta_data", JsonText, default=dict),
    Column("status", String(30), nullable=False, server_default="active"),
    *_common(),
    Index("ix_image_locations_image_id", "image_id"),
    Index("ix_image_locations_deleted", "deleted"),
)

jobs = Table(
    "jobs",
    metadata,
    # The order of submission; ids say nothing about order, clocks may jump.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("phase", String(255), nullable=False, default=""),
    Column("image_id", String(36), nullable=False),
    Column("request", JsonText, nullable=False),
    Column("request_id", String(64)),
    Column("principal", String(255)),
    Column("rate_limit", BigInteger),
    # Who works on it: every write after the claim names job, epoch and owner.
    Column("epoch", Integer, nullable=False, default=0),
    Column("owner", String(64)),
    # Until when nobody else may; by the database's clock.
    Column("lease_until", DateTime),
    # Attempts after this one may have left something in a store.
    Column("cleaned_epoch", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("not_before", DateTime),
    Column("waiting_for", String(255)),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    # Past the point of no return: only forward from here.
    Column("published", Boolean, nullable=False, default=False),
    Column("checkpoint", JsonText, nullable=False, default=dict),
    Column("error", JsonText),
    Column("report", JsonText),
    Column("created_at", DateTime, nullable=False),
    Column("updated_at", DateTime, nullable=False),
    Column("started_at", DateTime),
    Column("finished_at", DateTime),
    Index("ix_jobs_state_seq", "state", "seq"),
    Index("ix_jobs_image_id_state", "image_id", "state"),
    Index("ix_jobs_kind_seq", "kind", "seq"),
    # Never two running jobs for one image, whoever claims.
    Index(
        "ux_jobs_running_image",
        "image_id",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    # Finished jobs pile up; those that still have something to clear away are few.
    Index(
        "ix_jobs_unclean",
        "seq",
        sqlite_where=text("cleaned_epoch < epoch"),
        postgresql_where=text("cleaned_epoch < epoch"),
    ),
    sqlite_autoincrement=True,
)

# Where several nodes share the database: how far the transfer of a job is, for any node to go on with.
job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("job_id", String(36), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("saved_at", DateTime, nullable=False),
)
