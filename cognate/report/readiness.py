"""Readiness: whether a preset can be trained here and now, what it would take, and what to expect of it.

readiness() gathers facts (facts.py) from the data (plan.py), the machine (machine.py), the model's shapes and a short probe
(probe.py); verdict.py, projection.py and risks.py draw conclusions from them, and nothing else. The result is plain JSON.
The document that this answers is the "Phase 1 Cognate Training Readiness Report"; docs/readiness.md.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from cognate import __version__
from cognate.config import RunConfig, parse
from cognate.events import Failure
from cognate.jobdir import JobContext
from cognate.metrics import METRICS
from cognate.precision import use_whole_vectors
from cognate.report.facts import Facts
from cognate.report.machine import GPU_IS_BUSY, look_around
from cognate.report.network import count
from cognate.report.plan import SIX_PLAN, Material, make_plan
from cognate.report.probe import Disturbing, NotFinite, probe
from cognate.report.projection import project_disk, project_time
from cognate.report.risks import risks, targets
from cognate.report.verdict import judge, verdict
from cognate.rundir import AttemptDir, Places, RunDir, lease_is_free
from cognate.worker import explain, make_deterministic

PROBE_S: Final = 30.0
Say = Callable[[str, float | None], None]


def readiness(
    config: RunConfig,
    places: Places,
    runs_dir: Path,
    device: torch.device,
    *,
    probe_s: float = PROBE_S,
    not_now: str | None = None,
    gpu_is_busy: bool = False,
    wandb: Mapping[str, Any] | None = None,
    say: Say = lambda *_: None,
) -> dict[str, Any]:
    """The report, as plain JSON.

    runs_dir: where the run would be kept; its disk is looked at
    probe_s:  seconds for timing steps
    not_now:  why no step is timed
    gpu_is_busy: a run would get a GPU, and all are taken: neither it nor a step's time can be known now
    wandb:    of wandb_mode.seen_here(), where the caller knows it
    """
    began = time.monotonic()
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")  # the verdict says so
    make_deterministic(device)  # as a worker computes
    use_whole_vectors(device)
    machine = look_around(config, device, wandb, gpu_is_busy=gpu_is_busy)
    material = make_plan(config, places, lambda sentence: say(sentence, 0.1))
    facts = Facts(machine, material.plan, count(config), shutil.disk_usage(_existing(runs_dir)).free)
    if reason := (GPU_IS_BUSY if gpu_is_busy else not_now) or _why_not(facts):
        facts = replace(facts, absent={"probe": reason}, is_partial=reason in (GPU_IS_BUSY, not_now))
    else:
        say("timing a few steps", 0.5)
        facts = _probed(facts, config, material, device, probe_s, runs_dir)
    return _report(config, facts) | {"seconds": time.monotonic() - began}


def perform(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `readiness`, of the configuration `config`.

    not_now: why no step may be timed, or null; has_gpu: whether a run would get one; wandb: what the service sees of it
    """
    return readiness(
        parse(spec["config"]),
        context.places,
        context.runs_dir,
        torch.device(context.device),
        not_now=spec["not_now"],
        gpu_is_busy=spec["has_gpu"] and context.device == "cpu",
        wandb=spec["wandb"],
        say=context.say,
    )


def _why_not(facts: Facts) -> str | None:
    if facts.plan.error is not None:
        return "there is nothing to train on"
    free = facts.machine.memory_free_bytes
    if free is not None and facts.network.least_bytes > free:
        return "weights, gradient and optimizer state alone are larger than the free memory"
    return None


def _probed(facts: Facts, config: RunConfig, material: Material, device: torch.device, probe_s: float, runs_dir: Path) -> Facts:
    before = _at_work(runs_dir)
    try:
        return replace(facts, probe=probe(config, material, device, probe_s, lambda: bool(_at_work(runs_dir) - before)))
    except Disturbing as error:
        return replace(facts, absent={"probe": str(error)}, is_partial=True)
    except NotFinite as error:
        return replace(facts, trouble=("nonfinite_loss", f"{error}."))
    except Exception as error:  # whatever a step may raise here, a run's first step would raise too: that is the finding
        if explain(error) in (Failure.OOM_CUDA, Failure.OOM_HOST):
            return replace(facts, trouble=("out_of_memory", f"A step does not fit into memory: {_first_line(error)}"))
        return replace(facts, trouble=("step_failed", f"A step fails here: {type(error).__name__}: {_first_line(error)}"))


def _at_work(runs_dir: Path) -> set[Path]:
    """The newest attempts of the runs there that some process is at work on."""
    newest = (max(found, key=lambda attempt: attempt.number) for run in _runs(runs_dir) if (found := run.attempts()))
    return {attempt.path for attempt in newest if _is_held(attempt)}


def _runs(runs_dir: Path) -> list[RunDir]:
    return [RunDir(path) for path in runs_dir.iterdir()] if runs_dir.is_dir() else []


def _is_held(attempt: AttemptDir) -> bool:
    try:
        return not lease_is_free(attempt)
    except OSError:  # deleted meanwhile
        return False


def _report(config: RunConfig, facts: Facts) -> dict[str, Any]:
    findings = judge(config, facts)
    projected = {"disk": asdict(project_disk(facts.plan, facts.network, config.training, facts.probe))}
    if facts.probe is not None:
        projected["time"] = asdict(project_time(facts.plan, facts.probe))
    network = asdict(facts.network) | {"checkpoint_bytes": facts.network.checkpoint_bytes, "least_bytes": facts.network.least_bytes}
    return {
        "preset": config.preset,
        "version": __version__,
        "made_at": time.time(),
        "verdict": verdict(findings),
        "findings": [asdict(finding) for finding in findings],
        "machine": asdict(facts.machine),
        "data": asdict(facts.plan) | {"six_plan": _six_plan(facts)},
        "model": network,
        "optimizer": config.optimizer.model_dump(mode="json") | {"gradient_clip": config.training.gradient_clip},
        "training": config.training.model_dump(mode="json"),
        "metrics": {"total": len(METRICS), **Counter(metric.cadence.value for metric in METRICS)},
        "disk_free_bytes": facts.disk_free_bytes,
        "probe": asdict(facts.probe) if facts.probe else None,
        "projected": projected,
        "targets": targets(facts.plan),
        "risks": [asdict(risk) for risk in risks(config, facts)],
        "absent": dict(facts.absent),
        "is_partial": facts.is_partial,
    }


def _six_plan(facts: Facts) -> dict[str, Any] | None:
    """Beside the counts that docs/model.md gives for them, those of the six datasets, when they are the chosen ones."""
    if not facts.plan.is_six:
        return None
    counted = {stage["stage"]: stage["samples"] for stage in facts.plan.stages}
    return {"counted": [counted[stage] for stage in SIX_PLAN], "expected": list(SIX_PLAN.values())}


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(found for found in (path.absolute(), *path.absolute().parents) if found.exists())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]
