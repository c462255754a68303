"""The tables. Those whose names begin with `image` have exactly Glance's columns, types, indexes and
conventions, so that the same statements work on the database of a Glance; the others are ours.

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
    UniqueConstraint,
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

image_properties = Table(
    "image_properties",
    metadata,
    Column("id", Integer, primary_key=True, nullable=False),
    Column("image_id", String(36), ForeignKey("images.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("value", Text),
    *_common(),
    # Deleted rows count: a property that comes back gets its old row.
    UniqueConstraint("image_id", "name", name="ix_image_properties_image_id_name"),
    Index("ix_image_properties_image_id", "image_id"),
    Index("ix_image_properties_deleted", "deleted"),
)

image_tags = Table(
    "image_tags",
    metadata,
    Column("id", Integer, primary_key=True, nullable=False),
    Column("image_id", String(36), ForeignKey("images.id"), nullable=False),
    Column("value", String(255), nullable=False),
    *_common(),
    Index("ix_image_tags_image_id", "image_id"),
    Index("ix_image_tags_image_id_tag_value", "image_id", "value"),
)

image_members = Table(
    "image_members",
    metadata,
    Column("id", Integer, primary_key=True, nullable=False),
    Column("image_id", String(36), ForeignKey("images.id"), nullable=False),
    Column("member", String(255), nullable=False),
    Column("can_share", Boolean, nullable=False, default=False),
    Column("status", String(20), nullable=False, default="pending", server_default="pending"),
    *_common(),
    UniqueConstraint("image_id", "member", "deleted_at", name="image_members_image_id_member_deleted_at_key"),
    Index("ix_image_members_image_id", "image_id"),
    Index("ix_image_members_image_id_member", "image_id", "member"),
    Index("ix_image_members_deleted", "deleted"),
)

IN_LINE = "state = 'queued' AND held_by = 0 AND waiting_for IS NULL"
"""What is true of a job that may be claimed when its turn comes. Written out, because an index for some rows
is used by statements that name its condition word for word.
"""


def _where(condition: str) -> dict[str, Any]:
    """An index for these rows only."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


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
    Column("renewed_at", DateTime),
    # How far its worker was then, for the other nodes to show.
    Column("progress", JsonText),
    Column("failures", Integer, nullable=False, default=0),
    # Since when one attempt after the other has failed.
    Column("failing_since", DateTime),
    # The end of a back-off.
    Column("not_before", DateTime),
    Column("waiting_for", String(255)),
    # Whose turn it is (`control/jobs/choosing.py`): tier, turn, seq, the smallest first.
    Column("priority", Integer, nullable=False, default=5, server_default="5"),
    Column("tier", Integer, nullable=False, default=4, server_default="4"),
    Column("tier_since", DateTime),
    Column("turn", BigInteger, nullable=False, default=0, server_default="0"),
    Column("flow", String(330), nullable=False, default="", server_default=""),
    # What has to happen first: that time, and the end of those jobs of the batch.
    Column("start_after", DateTime),
    Column("held_by", Integer, nullable=False, default=0, server_default="0"),
    Column("batch_id", String(36)),
    Column("batch_name", String(64)),
    Column("batch_after", JsonText),
    Column("idempotency_key", String(255)),
    Column("request_digest", String(64)),
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
    Index("ix_jobs_batch_id_seq", "batch_id", "seq"),
    Index("ux_jobs_idempotency", "principal", "idempotency_key", unique=True),
    # Finished jobs pile up: what is looked for all the time must not meet them.
    # (With the state, which is always the same: SQLite prefers an index that begins with something known.)
    Index("ix_jobs_line", "state", "tier", "turn", "seq", **_where(IN_LINE)),
    Index("ix_jobs_flow", "state", "flow", "tier", "turn", **_where(IN_LINE)),
    Index(
        "ix_jobs_cancelling",
        "state",
        "tier",
        "turn",
        "seq",
        **_where("state = 'queued' AND cancel_requested"),
    ),
    Index(
        "ix_jobs_start_after",
        "state",
        "start_after",
        **_where("state = 'queued' AND start_after IS NOT NULL"),
    ),
    Index("ix_jobs_running", "owner", **_where("state = 'running'")),
    Index("ix_jobs_finished_at", "finished_at", **_where("finished_at IS NOT NULL")),
    # Never two running jobs for one image, whoever claims.
    Index(
        "ux_jobs_running_image",
        "image_id",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    sqlite_autoincrement=True,
)

# The stores that a job will use, as far as they are known when it is accepted.
job_stores = Table(
    "job_stores",
    metadata,
    Column("job_id", String(36), primary_key=True),
    Column("store", String(255), primary_key=True),
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

# The ledger: what an attempt will make outside of this database, written before it is made and struck off
# when its absence is certain. It outlives the row of its job.
artefacts = Table(
    "artefacts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("job_id", String(36), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("store", String(255), nullable=False),
    Column("key", String(255), nullable=False),
    # The name that everything carries which the attempt makes.
    Column("attempt", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    # By the database's clock.
    Column("created_at", DateTime, nullable=False),
    # The catalogue points to the object: only the attempt's marks may go.
    Column("published", Boolean, nullable=False, default=False, server_default=false()),
    # Who clears it has it until then; and nobody tries again before.
    Column("held_until", DateTime),
    Column("tries", Integer, nullable=False, default=0, server_default="0"),
    Column("trouble", Text),
    Index("ux_artefacts_attempt", "job_id", "epoch", "store", unique=True),
    Index("ix_artefacts_store_key", "store", "key"),
    sqlite_autoincrement=True,
)

# Places whose bytes were found not to be the image. A row goes when they are found right again, or with its
# place: `location_id` is new for every place.
quarantines = Table(
    "quarantines",
    metadata,
    Column("location_id", Integer, primary_key=True, autoincrement=False),
    Column("image_id", String(36), nullable=False),
    Column("job_id", String(36), nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", DateTime, nullable=False),
    Index("ix_quarantines_image_id", "image_id"),
)
