"""Alembic's way in. The service hands over an open connection; `alembic revision --autogenerate` makes its own."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import create_engine
from sqlmodel import SQLModel
from sqlmodel.sql.sqltypes import AutoString

from app.settings import Settings
from app.store import tables

assert tables.metric_row is not None  # imported for its effect: the metadata below


def render(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """SQLModel's string type is sa.String by another name; a migration should not need to import it."""
    return "sa.String()" if kind == "type" and isinstance(item, AutoString) else False


def run(connection: Any) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True, compare_type=True, render_item=render)
    with context.begin_transaction():
        context.run_migrations()


if connection := context.config.attributes.get("connection"):
    run(connection)
else:
    database = Settings().database
    database.parent.mkdir(parents=True, exist_ok=True)
    with create_engine(f"sqlite:///{database}").connect() as own:
        run(own)
