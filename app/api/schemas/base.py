"""What the shapes of every subject share: names, pages, and rows turned into answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

Item = TypeVar("Item")
Value = float | Literal["NaN", "Infinity", "-Infinity"]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[\w .()+\-]+$")]
CheckpointId = Annotated[str, Field(pattern=r"^ckpt_[0-9a-f-]{36}$")]
Tag = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[\w.:/\-]+$")]


class In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("seed", "priority", "auto_resume", "limit", "vote", mode="before", check_fields=False)
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """1.0 is an integer to JSON Schema, and to callers whose language has one kind of number."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


class Page(BaseModel, Generic[Item]):
    data: list[Item]
    has_more: bool
    next_cursor: str | None


def instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def fields_of(row: object, shape: type[BaseModel]) -> dict[str, Any]:
    """The attributes of `row` that `shape` has, with seconds turned into instants."""
    values = {name: getattr(row, name) for name in shape.model_fields}
    return {name: instant(value) if name == "at" or name.endswith("_at") else value for name, value in values.items()}
