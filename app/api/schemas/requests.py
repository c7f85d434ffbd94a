"""The bodies of requests. What is not known is refused, and so is what is of another type."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.api.schemas.base import CheckpointId, In, Name, Tag
from cognate.config import SPECIALISTS, DatasetName


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


_Unset: Any = Field(None, json_schema_extra=_without_default)  # it stays as it is: no null


class LaunchIn(In):
    """What to run: a preset, and what to change of it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"preset": "reasoning", "config": {"training": {"batch_size": 4, "max_steps": 60}}}]}
    )

    preset: str = Field(description="One of GET /v1/presets.", max_length=40)
    config: dict[str, Any] = Field({}, description="Overrides by section; see GET /v1/config/schema.")
    name: Name | None = None
    tags: list[Tag] = Field([], max_length=20)
    seed: int | None = Field(None, ge=0, lt=2**31)
    external_id: Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[\w.:/\-]+$")] | None = Field(
        None, description="A name of the caller's; a second run cannot have it."
    )

    priority: int = Field(0, ge=-1000, le=1000, description="Among queued runs the highest goes first.")
    auto_resume: int | None = Field(None, ge=0, le=1000, description="How often a lost worker is replaced without new progress.")
    notes: str | None = Field(None, max_length=10_000)


class PauseIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint": "save", "deadline_s": 30.0, "on_timeout": "stop"}]})

    checkpoint: Literal["save", "latest"] = Field(
        "save", description="Save before leaving, or leave at once and do the steps after the latest checkpoint again."
    )
    deadline_s: float | None = Field(None, gt=0, le=86_400, description="Seconds within which the run must be paused.")
    on_timeout: Literal["keep_running", "stop"] = Field(
        "keep_running", description="After the deadline: forget the pause, or end the run's processes and stop it."
    )


class StopIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint": "save", "grace_s": 30.0}]})

    checkpoint: Literal["save", "latest"] = Field("save", description="Save before leaving, or keep the latest checkpoint as it is.")
    grace_s: float = Field(60.0, ge=0, le=3600, description="Seconds to save and leave before the worker is killed.")


class EditIn(In):
    """What is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "night 7", "notes": "the larger batch", "tags": ["night"], "priority": 5}]}
    )

    name: Name | SkipJsonSchema[None] = _Unset
    notes: Annotated[str, Field(max_length=10_000)] | None = _Unset
    tags: Annotated[list[Tag], Field(max_length=20)] | SkipJsonSchema[None] = _Unset
    priority: Annotated[int, Field(ge=-1000, le=1000)] | SkipJsonSchema[None] = _Unset


class ForkIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"config": {"optimizer": {"muon_lr": 0.01}}, "name": "slower"}]})

    checkpoint_id: CheckpointId | None = Field(None, description="Where to go on from; empty takes the newest.")
    config: dict[str, Any] = Field({}, description="Overrides by section; not of model, data, batch or seed.")
    name: Name | None = None
    tags: list[Tag] = Field([], max_length=20)
    notes: str | None = Field(None, max_length=10_000)
    priority: int = Field(0, ge=-1000, le=1000)
    auto_resume: int | None = Field(None, ge=0, le=1000)


class GroupIn(In):
    """Several runs as one: by default the three specialists, each on its own configuration."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "night", "presets": ["reasoning", "speed"], "config": {"training": {"max_steps": 60}}}]}
    )

    name: Name | None = None
    presets: list[Annotated[str, Field(max_length=40)]] = Field(list(SPECIALISTS), min_length=1, max_length=20)
    config: dict[str, Any] = Field({}, description="Overrides for every run.")
    overrides: dict[str, dict[str, Any]] = Field({}, description="Further overrides by preset.")
    tags: list[Tag] = Field([], max_length=20)
    priority: int = Field(0, ge=-1000, le=1000)
    auto_resume: int | None = Field(None, ge=0, le=1000)


class EvaluateIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"datasets": ["gsm8k", "arc_easy"], "limit": 100}]})

    checkpoint_id: CheckpointId | None = Field(None, description="Which one; empty takes the newest.")
    datasets: Annotated[list[DatasetName], Field(min_length=1, max_length=14)] | None = Field(None, description="Empty takes all.")
    limit: int | None = Field(None, ge=1, description="A fixed sample of so many items of each; empty takes every item.")
    overlap: bool = Field(True, description="Count the items that share 13 words in a row with the training text.")
    calculator: bool = Field(False, description="Also measure answers that are numbers with a calculator behind `<<expression=`.")
    vote: int | None = Field(None, ge=2, le=100, description="Also measure the majority of so many drawn answers that are numbers.")


class HandoffIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"allow_any_size": False}]})

    allow_any_size: bool = Field(
        False, description="Take other sizes and presets too; the archive then says that it is not fit for Phase 2."
    )


class QueueIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"held": True}]})

    held: bool = Field(description="Hold back queued runs; what is at work goes on.")


class PinIn(In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"pinned": True}]})

    pinned: bool = Field(description="A pinned checkpoint is kept as long as its run.")
