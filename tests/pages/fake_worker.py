"""A worker that trains nothing: it writes the journal of a run whose loss falls, and obeys control.json.

Runs under the real shim and supervisor, in place of `python -m cognate.worker`. Its seed chooses what happens:
UNLUCKY meets values that are not finite, and HOSTILE says in every free text what must never reach a page as markup.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from cognate.config import RunConfig
from cognate.events import Kind
from cognate.metrics import METRICS, Cadence
from cognate.rundir import AttemptDir, Journal, RunDir, file_digest, read_control, write_json

UNLUCKY = 13
HOSTILE = 666
MARKUP = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"
STEP_S = 0.02
STAGES = [
    {"stage": 1, "name": "foundation", "first_epoch": 1, "last_epoch": 3, "datasets": ["gsm8k", "svamp"], "samples": 1000, "trained": 950},
    {"stage": 2, "name": "reasoning", "first_epoch": 4, "last_epoch": 6, "datasets": ["arc_easy"], "samples": 500, "trained": 480},
]


def main(attempt: AttemptDir) -> int:
    run, journal = attempt.run, Journal(attempt)
    config = run.config()
    total = config.training.max_steps or 3000
    saved = run.complete_checkpoints()
    step = saved[-1][0] if saved else 0

    journal.append(Kind.STARTED, device="cpu", precision="float32", threads=1, torch="none", resumed_from_step=step or None)
    journal.append(Kind.PHASE, phase="loading_data")
    epochs = 1 if config.preset == "quickstart" else config.training.epochs
    steps = [total // epochs] * epochs
    journal.append(Kind.PLAN, total_steps=total, steps_per_epoch=steps, total_params=26_974_561, curriculum={"stages": STAGES})
    if config.seed == HOSTILE:
        journal.append(Kind.WARNING, message=MARKUP, note=MARKUP)
        print(MARKUP)
    journal.append(Kind.PHASE, phase="training")
    serial = 0

    while step < total:
        control = read_control(attempt)
        if control.serial != serial and control.command in ("pause", "stop"):
            serial = control.serial
            save(run, step, journal)
            journal.append(Kind.PAUSED if control.command == "pause" else Kind.STOPPED, step=step, serial=serial)
            return 0
        time.sleep(STEP_S)
        step += 1
        print(f"step {step} of {total}")
        progress = {
            "step": step,
            "total_steps": total,
            "epoch": epochs * step / total,
            "step_time_s": STEP_S,
            "eta_s": (total - step) * STEP_S,
        }
        progress |= {"tokens_per_s": config.training.batch_size * config.training.sequence_length / STEP_S, "skipped_steps": 0}
        journal.append(Kind.METRICS, step=step, epoch=epochs * step / total, values=values_of(step, total, config), progress=progress)
        if step % 50 == 0 or (config.seed == HOSTILE and step == 10):
            write_on(step, epochs * step / total, MARKUP if config.seed == HOSTILE else f" It is {step}.\n", journal)
        if step % config.training.checkpoint_every_steps == 0 or step == total:
            save(run, step, journal)
            journal.append(Kind.PHASE, phase="training")
    journal.append(Kind.FINISHED, step=step)
    return 0


def values_of(step: int, total: int, config: RunConfig) -> dict[str, float]:
    loss = 1.2 + 6 * math.exp(-3 * step / total) + 0.15 * math.sin(step * 2.3)
    values = {metric.key: abs(math.sin(step / 40 + number)) for number, metric in enumerate(METRICS) if metric.cadence is Cadence.STEP}
    values = {key: value for key, value in values.items() if not key.startswith("gpu_")}
    values |= {"loss": loss, "loss_ce": loss - 0.05, "loss_act": 0.06, "loss_gate": -0.01, "perplexity": math.exp(loss - 0.05)}
    values["learning_rate"] = config.optimizer.muon_lr * min(1.0, step / 20)
    if step % 50 == 0:
        values |= {"val_loss": loss + 0.2, "val_perplexity": math.exp(loss + 0.2), "curriculum_stage": 1.0}
    if step == total:
        values |= {"total_params": 26_974_561.0, "training_time_hours": 0.01}
    if config.seed == UNLUCKY and step in (13, 14, 15, 27):
        values |= {"loss": math.nan, "loss_ce": math.nan, "grad_norm": math.inf}
    return values


def write_on(step: int, epoch: float, text: str, journal: Journal) -> None:
    for place, name in enumerate(("gsm8k", "mbpp")):
        told = {"dataset": name, "prompt": f"{name}?\nAnswer:", "expected": " It is\n 50.", "text": text if place == 0 else ""}
        journal.append(Kind.SAMPLE, step=step, epoch=epoch, place=place, **told)


def save(run: RunDir, step: int, journal: Journal) -> None:
    path = run.checkpoint(step)
    if step == 0 or path.exists():
        return
    unfinished = path.with_name(f".{path.name}")
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(bytes(100_000))
    write_json(unfinished / "state.json", {"step": step})
    files: dict[str, Any] = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for file in sorted(unfinished.iterdir())
    }
    unfinished.rename(path)
    kept = [found for found, _ in run.complete_checkpoints()]
    journal.append(Kind.CHECKPOINT, step=step, name=path.name, files=files, kept_steps=kept, serial=None)


if __name__ == "__main__":
    sys.exit(main(AttemptDir(Path(sys.argv[1]))))
