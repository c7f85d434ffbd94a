"""Several runs together: groups, the queue, and the devices that runs hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas.base import instant
from app.api.schemas.runs import RunOut, run_out
from app.store.tables import Run, RunGroup


class GroupOut(BaseModel):
    id: str
    name: str
    created_at: datetime
    states: dict[str, int] = Field(description="How many runs are in each state.")
    runs: list[RunOut]


class QueueOut(BaseModel):
    held: bool
    data: list[RunOut]


class RestOut(BaseModel):
    """After attempts there ended before their first step a GPU is not launched on for a while, longer each time."""

    model_config = ConfigDict(from_attributes=True)

    left_s: float
    why: str


class DeviceOut(BaseModel):
    slot: str
    run_id: str | None = Field(description="The run that holds it.")
    job_id: str | None = Field(description="The job that holds it; jobs hold GPUs only.")
    rest: RestOut | None = Field(description="For how long yet a GPU is rested on which attempts failed, and why.")
    name: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilisation_percent: float | None = None


def group_out(group: RunGroup, members: Sequence[Run], queue: Sequence[str]) -> GroupOut:
    states = dict(Counter(run.state for run in members))
    shown = [run_out(run, queue) for run in members]
    return GroupOut(id=group.id, name=group.name, created_at=instant(group.created_at), states=states, runs=shown)
