"""`python -m cognate.job JOB_DIR` carries out one job (jobdir.py) and leaves its result or the reason why there is none.

Told by files and four environment variables: COGNATE_RUNS_DIR, COGNATE_DATA_DIR, COGNATE_CACHE_DIR, COGNATE_DEVICE.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Final

# Before torch loads. How long a thread that waits for the others spins before it sleeps: docs/decisions/0004.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from cognate.jobdir import JobContext, JobDir, JobFailed, Perform
from cognate.priority import give_way
from cognate.rundir import Places

# Imported when they are asked for: some need torch, some do not.
KINDS: Final[dict[str, str]] = {
    "evaluation": "cognate.report.evaluation:perform",
    "readiness": "cognate.report.readiness:perform",
    "diversity": "cognate.report.diversity:perform",
    "handoff": "cognate.report.handoff:perform",
    "training_report": "cognate.report.training:perform",
    "fetch": "cognate.data.hub:perform_fetch",
    "data_status": "cognate.data.report:perform_status",
}

EXIT_FAILED = 1
SAY_EVERY_S = 0.5
REPEAT_EVERY_S = 30.0  # the same words: they say that it is still at work


def main(arguments: list[str] | None = None) -> int:
    (path,) = arguments if arguments is not None else sys.argv[1:]
    give_way()
    job = JobDir(Path(path))
    try:
        kind, spec = job.asked()
        job.succeed(perform_of(kind)(spec, _context(job)))
    except JobFailed as error:
        job.fail(error.reason, str(error))
        return EXIT_FAILED
    except Exception as error:  # the edge of the process: everything is answered here, with a reason
        traceback.print_exc()
        job.fail("job_error", f"{type(error).__name__}: {error}"[:2000])
        return EXIT_FAILED
    return 0


def perform_of(kind: str) -> Perform:
    module, _, name = KINDS[kind].partition(":")
    perform: Perform = getattr(importlib.import_module(module), name)
    return perform


def _context(job: JobDir) -> JobContext:
    said: tuple[str, float | None] | None = None
    said_at = -SAY_EVERY_S

    def say(message: str, fraction: float | None = None) -> None:
        nonlocal said, said_at
        if time.monotonic() - said_at >= (REPEAT_EVERY_S if said == (message, fraction) else SAY_EVERY_S):
            said, said_at = (message, fraction), time.monotonic()
            job.say(message, fraction)

    runs_dir = os.environ["COGNATE_RUNS_DIR"]
    return JobContext(
        job.path, Path(runs_dir), Places(_path("COGNATE_DATA_DIR"), _path("COGNATE_CACHE_DIR")), os.environ["COGNATE_DEVICE"], say
    )


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


if __name__ == "__main__":
    sys.exit(main())
