"""what ails a run, and the rows that fit into memory"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run") as table:
        table.add_column(sa.Column("alerts", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("rows_at_most", sa.Integer(), nullable=True))
