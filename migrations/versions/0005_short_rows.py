"""metric rows name their run by a number; the queue's order by sequence number, not by the clock"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "series",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_series_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_series")),
        sa.UniqueConstraint("run_id", name=op.f("uq_series_run_id")),
    )
    op.execute("INSERT INTO series (run_id) SELECT id FROM run WHERE id IN (SELECT run_id FROM metric_row) ORDER BY id")
    old = op.get_bind().execute(sa.text("PRAGMA table_info(metric_row)")).mappings().all()
    kept = [column for column in old if column["name"] not in ("seq", "run_id")]
    op.rename_table("metric_row", "old_metric_row")
    op.create_table(
        "metric_row",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("series", sa.Integer(), nullable=False),
        *(sa.Column(column["name"], _TYPES[column["type"]], nullable=not column["notnull"]) for column in kept),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_metric_row")),
        sa.UniqueConstraint("series", "step", "attempt", name=op.f("uq_metric_row_series_step_attempt")),
    )
    names = ", ".join(column["name"] for column in kept)
    op.execute(
        f"INSERT INTO metric_row (seq, series, {names}) "  # noqa: S608 - our own names
        f"SELECT seq, number, {names} FROM old_metric_row JOIN series USING (run_id) ORDER BY seq"
    )
    op.drop_table("old_metric_row")

    op.add_column("run", sa.Column("queued_seq", sa.Integer(), nullable=False, server_default="0"))
    # Ranks are below every number to come: each run had an event when it was queued.
    ranked = "SELECT id, rank() OVER (ORDER BY queued_at, id) AS place FROM run"
    op.execute(f"UPDATE run SET queued_seq = place FROM ({ranked}) AS ranked WHERE ranked.id = run.id")  # noqa: S608
    op.drop_index(op.f("ix_run_queued_at"), "run")
    op.drop_column("run", "queued_at")


_TYPES = {"INTEGER": sa.Integer(), "FLOAT": sa.Float(), "JSON": sa.JSON(none_as_null=True), "TEXT": sa.Text()}
