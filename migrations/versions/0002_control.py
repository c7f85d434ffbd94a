"""pause contract, groups, forks, priorities, automatic resumes, pins, idempotency keys"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "run_group",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_group")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_key")),
    )
    op.create_index(op.f("ix_idempotency_key_created_at"), "idempotency_key", ["created_at"])
    with op.batch_alter_table("run") as table:
        table.drop_column("control_deadline_at")
        table.add_column(sa.Column("control_grace_s", sa.Float(), nullable=True))
        table.add_column(sa.Column("control_saves", sa.Boolean(), nullable=False, server_default=sa.true()))
        table.add_column(sa.Column("checkpoint_serial", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("on_timeout", sa.String(), nullable=True))
        table.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("auto_resume", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("auto_resumes", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("notes", sa.String(), nullable=True))
        table.add_column(sa.Column("group_id", sa.String(), nullable=True))
        table.add_column(sa.Column("forked_from", sa.JSON(none_as_null=True), nullable=True))
        table.create_foreign_key(op.f("fk_run_group_id"), "run_group", ["group_id"], ["id"])
        table.create_index(op.f("ix_run_group_id"), ["group_id"])
    with op.batch_alter_table("checkpoint") as table:
        table.add_column(sa.Column("is_pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
