"""The tables of Glissade 0.1: images and locations as Glance has them, and jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _common() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime),
        sa.Column("deleted_at", sa.DateTime),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.String(255)),
        sa.Column("disk_format", sa.String(20)),
        sa.Column("container_format", sa.String(20)),
        sa.Column("size", sa.BigInteger),
        sa.Column("virtual_size", sa.BigInteger),
        sa.Column("status", sa.String(30), nullable=False),
        sa.Column(
            "visibility",
            sa.Enum("private", "public", "shared", "community", name="image_visibility"),
            nullable=False,
            server_default="shared",
        ),
        sa.Column("checksum", sa.String(32)),
        sa.Column("os_hash_algo", sa.String(64)),
        sa.Column("os_hash_value", sa.String(128)),
        sa.Column("min_disk", sa.Integer, nullable=False),
        sa.Column("min_ram", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("protected", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("os_hidden", sa.Boolean, nullable=False, server_default=sa.false()),
        *_common(),
    )
    for name, column in (
        ("checksum_image_idx", "checksum"),
        ("visibility_image_idx", "visibility"),
        ("ix_images_deleted", "deleted"),
        ("owner_image_idx", "owner"),
        ("created_at_image_idx", "created_at"),
        ("updated_at_image_idx", "updated_at"),
        ("os_hidden_image_idx", "os_hidden"),
        ("os_hash_value_image_idx", "os_hash_value"),
    ):
        op.create_index(name, "images", [column])

    op.create_table(
        "image_locations",
        sa.Column("id", sa.Integer, primary_key=True, nullable=False),
        sa.Column("image_id", sa.String(36), sa.ForeignKey("images.id"), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("meta_data", sa.Text),
        sa.Column("status", sa.String(30), nullable=False, server_default="active"),
        *_common(),
    )
    op.create_index("ix_image_locations_image_id", "image_locations", ["image_id"])
    op.create_index("ix_image_locations_deleted", "image_locations", ["deleted"])

    op.create_table(
        "jobs",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("phase", sa.String(255), nullable=False),
        sa.Column("image_id", sa.String(36), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("request_id", sa.String(64)),
        sa.Column("principal", sa.String(255)),
        sa.Column("rate_limit", sa.BigInteger),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("cleaned_epoch", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("not_before", sa.DateTime),
        sa.Column("waiting_for", sa.String(255)),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False),
        sa.Column("checkpoint", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("report", sa.Text),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.Column("started_at", sa.DateTime),
        sa.Column("finished_at", sa.DateTime),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_state_seq", "jobs", ["state", "seq"])
    op.create_index("ix_jobs_image_id_state", "jobs", ["image_id", "state"])
    op.create_index("ix_jobs_kind_seq", "jobs", ["kind", "seq"])
    op.create_index(
        "ux_jobs_running_image",
        "jobs",
        ["image_id"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_jobs_unclean",
        "jobs",
        ["seq"],
        sqlite_where=sa.text("cleaned_epoch < epoch"),
        postgresql_where=sa.text("cleaned_epoch < epoch"),
    )


def downgrade() -> None:
    for table in ("jobs", "image_locations", "images"):
        op.drop_table(table)
