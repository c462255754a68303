"""What is said about images: properties, tags and members, in Glance's tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _common() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime),
        sa.Column("deleted_at", sa.DateTime),
        sa.Column("deleted", sa.Boolean, nullable=False),
    )


def _of_image() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("id", sa.Integer, primary_key=True, nullable=False),
        sa.Column("image_id", sa.String(36), sa.ForeignKey("images.id"), nullable=False),
    )


def upgrade() -> None:
    op.create_table(
        "image_properties",
        *_of_image(),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("value", sa.Text),
        *_common(),
        sa.UniqueConstraint("image_id", "name", name="ix_image_properties_image_id_name"),
    )
    op.create_index("ix_image_properties_image_id", "image_properties", ["image_id"])
    op.create_index("ix_image_properties_deleted", "image_properties", ["deleted"])
    op.create_table(
        "image_tags",
        *_of_image(),
        sa.Column("value", sa.String(255), nullable=False),
        *_common(),
    )
    op.create_index("ix_image_tags_image_id", "image_tags", ["image_id"])
    op.create_index("ix_image_tags_image_id_tag_value", "image_tags", ["image_id", "value"])
    op.create_table(
        "image_members",
        *_of_image(),
        sa.Column("member", sa.String(255), nullable=False),
        sa.Column("can_share", sa.Boolean, nullable=False),
        sa.Column("status", sa.String(20), nullable=False, server_default="pending"),
        *_common(),
        sa.UniqueConstraint(
            "image_id", "member", "deleted_at", name="image_members_image_id_member_deleted_at_key"
        ),
    )
    op.create_index("ix_image_members_image_id", "image_members", ["image_id"])
    op.create_index("ix_image_members_image_id_member", "image_members", ["image_id", "member"])
    op.create_index("ix_image_members_deleted", "image_members", ["deleted"])


def downgrade() -> None:
    for table in ("image_members", "image_tags", "image_properties"):
        op.drop_table(table)
