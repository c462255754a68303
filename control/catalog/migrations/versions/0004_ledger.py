"""The ledger of what attempts make, instead of a count of the attempts that were cleared; and quarantines."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_UNCLEAN = sa.text("cleaned_epoch < epoch")


def upgrade() -> None:
    artefacts = op.create_table(
        "artefacts",
        sa.Column("id", _BIG, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("store", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("attempt", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("held_until", sa.DateTime),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("trouble", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("ux_artefacts_attempt", "artefacts", ["job_id", "epoch", "store"], unique=True)
    op.create_index("ix_artefacts_store_key", "artefacts", ["store", "key"])
    op.create_table(
        "quarantines",
        sa.Column("location_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("image_id", sa.String(36), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", sa.DateTime, nullable=False),
    )
    op.create_index("ix_quarantines_image_id", "quarantines", ["image_id"])
    rows = [row for job in _unclean_jobs() for row in _rows_of(job)]
    if rows:
        op.bulk_insert(artefacts, rows)
    op.drop_index("ix_jobs_unclean", "jobs")
    op.drop_column("jobs", "cleaned_epoch")


def _unclean_jobs() -> list[Any]:
    names = ("id", "kind", "image_id", "request", "checkpoint", "epoch", "cleaned_epoch", "updated_at")
    jobs = sa.table("jobs", *(sa.column(name) for name in names[:-1]), sa.column("updated_at", sa.DateTime))
    return list(op.get_bind().execute(sa.select(jobs).where(_UNCLEAN)).mappings())


def _rows_of(job: Any) -> list[dict[str, Any]]:
    """Every attempt that was not cleared, in every store that the job writes to."""
    request = json.loads(job["request"])
    published = json.loads(job["checkpoint"]).get("published", ())
    stores = {"import": request.get("stores"), "copy": request.get("stores")}.get(job["kind"]) or ()
    if job["kind"] == "move":
        stores = [request["to_store"]]
    return [
        {
            "job_id": job["id"],
            "epoch": epoch,
            "store": store,
            "key": job["image_id"],
            "attempt": f"{job['id'].replace('-', '')}-{epoch}",
            "kind": job["kind"],
            "created_at": job["updated_at"],
            "published": store in published,
            "tries": 0,
        }
        for epoch in range(job["cleaned_epoch"] + 1, job["epoch"] + 1)
        for store in dict.fromkeys(stores)
    ]


def downgrade() -> None:
    op.add_column("jobs", sa.Column("cleaned_epoch", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_jobs_unclean", "jobs", ["seq"], sqlite_where=_UNCLEAN, postgresql_where=_UNCLEAN)
    op.drop_table("quarantines")
    op.drop_table("artefacts")
