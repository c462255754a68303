"""Priorities, fair turns, batches, idempotency keys, and what a job is shown with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_IN_LINE = "state = 'queued' AND held_by = 0 AND waiting_for IS NULL"
_PARTIAL = (
    ("ix_jobs_line", ("state", "tier", "turn", "seq"), _IN_LINE),
    ("ix_jobs_flow", ("state", "flow", "tier", "turn"), _IN_LINE),
    ("ix_jobs_cancelling", ("state", "tier", "turn", "seq"), "state = 'queued' AND cancel_requested"),
    ("ix_jobs_start_after", ("state", "start_after"), "state = 'queued' AND start_after IS NOT NULL"),
    ("ix_jobs_running", ("owner",), "state = 'running'"),
    ("ix_jobs_finished_at", ("finished_at",), "finished_at IS NOT NULL"),
)


def _columns() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("priority", sa.Integer, nullable=False, server_default="5"),
        sa.Column("tier", sa.Integer, nullable=False, server_default="4"),
        sa.Column("tier_since", sa.DateTime),
        sa.Column("turn", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("flow", sa.String(330), nullable=False, server_default=""),
        sa.Column("start_after", sa.DateTime),
        sa.Column("held_by", sa.Integer, nullable=False, server_default="0"),
        sa.Column("batch_id", sa.String(36)),
        sa.Column("batch_name", sa.String(64)),
        sa.Column("batch_after", sa.Text),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_digest", sa.String(64)),
        sa.Column("failing_since", sa.DateTime),
        sa.Column("renewed_at", sa.DateTime),
        sa.Column("progress", sa.Text),
    )


def upgrade() -> None:
    for column in _columns():
        op.add_column("jobs", column)
    op.execute("update jobs set tier_since = created_at where state in ('queued', 'running')")
    op.create_index("ix_jobs_batch_id_seq", "jobs", ["batch_id", "seq"])
    op.create_index("ux_jobs_idempotency", "jobs", ["principal", "idempotency_key"], unique=True)
    for name, columns, condition in _PARTIAL:
        op.create_index(
            name,
            "jobs",
            list(columns),
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
    op.create_table(
        "job_stores",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("store", sa.String(255), primary_key=True),
    )


def downgrade() -> None:
    op.drop_table("job_stores")
    for name, _, _ in _PARTIAL:
        op.drop_index(name, "jobs")
    op.drop_index("ux_jobs_idempotency", "jobs")
    op.drop_index("ix_jobs_batch_id_seq", "jobs")
    for column in reversed(_columns()):
        op.drop_column("jobs", column.name)
