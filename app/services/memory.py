"""Out of memory: how many rows of a batch go through the model at once from now on (decision 10). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.services.ailments import Ailment
from app.services.health import Finding
from cognate.config import RunConfig


def answer(
    config: RunConfig, plan: Mapping[str, Any], rows_at_most: int | None, reason: str | None, phase: str | None, step: int
) -> tuple[int | None, Finding]:
    """(rows at once from now on, the alert) of a run that ran out of memory; None rows: it stays failed.

    plan: empty where no attempt came as far; rows_at_most: since it happened before; phase, step: what the attempt said last
    """
    training = config.training
    planned = plan.get("rows_at_once") or min(training.micro_batch_size or training.batch_size, training.batch_size)
    rows = min(planned, rows_at_most or planned)
    fewer = fewer_rows(training.batch_size, rows)
    if phase in (None, "loading_data"):
        fewer, message = None, "it happened before there was a batch, so fewer rows at once are no remedy"
    elif fewer is None:
        message = "a batch went through the model row by row already"
    elif config.health.on_out_of_memory == "fail":
        fewer, message = None, f"with {rows} rows of a batch at once; health.on_out_of_memory leaves it at that"
    else:
        message = f"{rows} rows of a batch at once were too many; from now on {fewer}"
    over_after = step + training.log_every_steps  # where the next row is, which the failed step is not behind
    if "total_steps" in plan:
        over_after = min(over_after, plan["total_steps"] - 1)
    evidence = {
        "reason": reason, "phase": phase, "step": step, "rows_at_once": rows, "rows_from_now_on": fewer, "over_after_step": over_after,
    }  # fmt: skip
    return fewer, Finding(Ailment.OUT_OF_MEMORY, True, message, evidence, step)


def fewer_rows(batch_size: int, rows: int) -> int | None:
    """At most half of `rows` that divide a batch; None when it is one already."""
    return max((fewer for fewer in range(1, rows // 2 + 1) if batch_size % fewer == 0), default=None)
